"""What a XAPI call can fail with: a code and a list of strings, nothing else."""

NULL = "OpaqueRef:NULL"


class ApiError(Exception):
    """A failure that the client sees, as `[code, *params]`.

    Codes and parameters follow xapi: ocaml/xapi-consts/api_errors.ml and the code raising them.
    """

    def __init__(self, code: str, *params: str) -> None:
        super().__init__(code, *params)
        self.code = code
        self.params = params

    @property
    def description(self) -> list[str]:
        return [self.code, *self.params]

    def __str__(self) -> str:
        return f"{self.code}: [ {'; '.join(self.params)} ]"


def handle_invalid(cls: str, ref: str) -> ApiError:
    return ApiError("HANDLE_INVALID", cls, ref)


def internal_error(text: str) -> ApiError:
    return ApiError("INTERNAL_ERROR", text)


def not_simulated(method: str) -> ApiError:
    """Return what XAPI says where something is known and not done."""
    return ApiError("NOT_IMPLEMENTED", method)


_TYPE_NAMES = {
    "system": "System",
    "user": "User",
    "ephemeral": "Ephemeral",
    "suspend": "Suspend",
    "crashdump": "Crashdump",
    "ha_statefile": "HA statefile",
    "metadata": "Metadata",
    "redo_log": "Redo log",
    "rrd": "rrd",
    "pvs_cache": "PVS cache",
    "cbt_metadata": "CBT metadata",
}
"""What people see of `VDI.type`. Source: xapi: ocaml/xapi-cli-server/record_util.ml."""


def incompatible_type(vdi: str, kind: str) -> ApiError:
    """Return the failure of an operation that is not for VDIs of a type."""
    return ApiError("VDI_INCOMPATIBLE_TYPE", vdi, _TYPE_NAMES[kind])


BACKEND_TEXTS = {
    24: "The VDI is currently in use",
    43: "The VDI already exists",
    44: "There is insufficient space",
    46: "The VDI is not available",
    47: "The SR is not available",
    64: "Failed to remove VDI",
    65: "Failed to load VDI",
    66: "Invalid VDI type",
    78: "VDI Creation failed",
    79: "VDI Invalid size",
    80: "Failed to mark VDI hidden",
    81: "Failed to clone VDI",
    82: "Failed to snapshot VDI",
    90: "The request is missing the device parameter",
    94: "The request is missing the location parameter",
    101: "The request is missing the serverpath parameter",
    102: "The request is missing the server parameter",
    109: "The snapshot chain is too long",
    110: "VDI resize failed",
    200: "General IO error",
    457: "Unable to activate changed block tracking.",
    458: "Unable to deactivate changed block tracking.",
    459: "Changed block tracking log is in an inconsistent state.",
    460: "Failed to calculate changed blocks for given VDIs.",
}
"""From sm: libs/sm/core/XE_SR_ERRORCODES.xml."""


def backend_failure(number: int, detail: str = "") -> ApiError:
    """Return a storage driver's fault as xapi: ocaml/xapi/sm_exec.ml reports it."""
    text = BACKEND_TEXTS.get(number, "General backend error")
    if detail:
        text = f"{text} [opterr={detail}]"
    return ApiError(f"SR_BACKEND_FAILURE_{number}", "", text, "")
