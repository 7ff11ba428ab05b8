"""VM.import: the pool itself fetches an XVA from a web server, or from another pool's `/export`.

Source: xapi: ocaml/xapi/xapi_vm.ml (import_inner).
"""

from http import HTTPStatus
from urllib.parse import urljoin

import aiohttp

from xorepd_lab.calls.call import Call
from xorepd_lab.calls.signatures import rpc
from xorepd_lab.front.xva_handlers import stream_import
from xorepd_lab.front.xva_records import Options
from xorepd_lab.model.failures import ApiError, internal_error
from xorepd_lab.wire.xva import premature_end

MOST_REDIRECTS = 5
REDIRECTS = range(300, 400)


@rpc("VM.import(url: string, sr: ref SR, full_restore: bool, force: bool)")
async def import_(call: Call, url: str, sr: str, full_restore: bool, force: bool) -> list[str]:
    options = Options(sr, full_restore, force)
    call.pool.db.row("SR", sr)
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as client:
            for _ in range(MOST_REDIRECTS + 1):
                # Certificates are looked at only if an administrator switched that on.
                async with client.get(url, allow_redirects=False, ssl=False) as answer:
                    if answer.status not in REDIRECTS:
                        return await _take(call, answer, options)
                    if "Location" not in answer.headers:
                        raise ApiError("IMPORT_ERROR", "Redirect with no new location")
                    url = urljoin(url, answer.headers["Location"])
    except aiohttp.ClientError as error:
        raise internal_error(str(error)) from error
    raise ApiError("IMPORT_ERROR", "Maximum redirect limit reached")


async def _take(call: Call, answer: aiohttp.ClientResponse, options: Options) -> list[str]:
    if answer.status != 200:
        raise ApiError("IMPORT_ERROR", f"{answer.status} {HTTPStatus(answer.status).phrase}")

    async def receive() -> bytes:
        try:
            return await answer.content.readany()
        except aiohttp.ClientError as error:
            raise premature_end() from error

    try:
        return await stream_import(Call(call.pool, call.host, task=call.task), receive, options)
    except ApiError as error:
        raise _as_it_is(error) from error


def _as_it_is(error: ApiError) -> ApiError:
    """Return a failure as this call tells it: only `/import` has words for what its reader says."""
    match error.description:
        case ["IMPORT_ERROR_PREMATURE_EOF"]:
            return internal_error("End_of_file")
        case ["IMPORT_ERROR", text]:
            return internal_error(text.removeprefix("INTERNAL_ERROR: [ ").removesuffix(" ]"))
        case [code, *_] if code.startswith("IMPORT_ERROR_"):
            return internal_error("Import.IFailure(_)")
        case _:
            return error
