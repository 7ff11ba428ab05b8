"""Read a pool's password from where the configuration says it is, each time it is needed.

Reading anew at every login means that a changed password needs no reload, and that the daemon
keeps no copy between logins. A password never comes from a command line: process lists are public.
"""

from __future__ import annotations

import errno
import os
import ssl
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

from xorepd.config.models import PoolSettings
from xorepd.errors import ConfigError
from xorepd.ids import PoolName

MAX_BYTES = 4096
"""A password file that is longer is some other file."""
MAX_CA_BYTES = 1024 * 1024
"""All authorities of a system have a quarter of that."""


def read_password(
    pool: PoolSettings, *, environ: Mapping[str, str] | None = None, file: Path | None = None
) -> str:
    """Return the password of the account that xorepd uses on a pool.

    Args:
        pool: The pool; exactly one of its `password…` fields is set.
        environ: The environment to look in; the process's by default.
        file: The configuration file, for the error to name.

    Raises:
        ConfigError: it is not there, cannot be read, is empty, or others can read it.
    """
    environ = os.environ if environ is None else environ
    file = file or Path("configuration")
    if pool.password is not None:
        return pool.password.get_secret_value()
    if pool.password_env is not None:
        key = f"pools.{pool.name}.password_env"
        password = environ.get(pool.password_env, "")
        if not password:
            raise ConfigError(file, key, "is not set in the environment", value=pool.password_env)
        return password
    if pool.password_credential is not None:
        key = f"pools.{pool.name}.password_credential"
        directory = environ.get("CREDENTIALS_DIRECTORY")
        if directory is None:
            raise ConfigError(
                file,
                key,
                "systemd has passed no credentials",
                value=pool.password_credential,
                hint=f"add LoadCredential={pool.password_credential}:PATH to the unit",
            )
        # systemd made that directory for this process alone: its modes are systemd's business.
        return _read(file, key, Path(directory) / pool.password_credential, private=False)
    assert pool.password_file is not None, "the model allows no other case"
    return _read(file, f"pools.{pool.name}.password_file", pool.password_file, private=True)


class HasPools(Protocol):
    """A configuration of anything that logs in to pools."""

    @property
    def file(self) -> Path: ...
    @property
    def pools(self) -> Mapping[PoolName, PoolSettings]: ...


def secret_problems(
    settings: HasPools, *, environ: Mapping[str, str] | None = None
) -> Iterator[ConfigError]:
    """Read every password and CA file once; return what is wrong with those that cannot be used."""
    for pool in settings.pools.values():
        try:
            read_password(pool, environ=environ, file=settings.file)
        except ConfigError as error:
            yield error
        if pool.ca_file is not None:
            key, path = f"pools.{pool.name}.ca_file", pool.ca_file
            if reason := _ca_problem(path):
                yield ConfigError(settings.file, key, reason, value=str(path))


def _ca_problem(path: Path) -> str:
    try:
        content, _ = _content(path, MAX_CA_BYTES)
        if len(content) > MAX_CA_BYTES:
            return f"is longer than {MAX_CA_BYTES} bytes"
        if b"-----BEGIN CERTIFICATE-----" not in content:
            return "holds no certificate in PEM form"
        ssl.create_default_context(cadata=content.decode("ascii", "ignore"))
    except ssl.SSLError as error:
        return f"holds no certificate that can be used ({error.reason or error})"
    except ValueError as error:
        return f"holds no certificate that can be used ({error})"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return ""


def _read(file: Path, key: str, path: Path, *, private: bool) -> str:
    try:
        content, mode = _content(path, MAX_BYTES)
    except OSError as error:
        raise _unreadable(file, key, path, error) from error
    if private and mode & stat.S_IROTH:
        raise ConfigError(
            file, key, "everyone can read it", value=str(path), hint=f"chmod 600 {path}"
        )
    if len(content) > MAX_BYTES:
        raise ConfigError(file, key, f"is longer than {MAX_BYTES} bytes", value=str(path))
    try:
        # Editors end a file with a newline; no password does.
        password = content.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        # `from None`: the error carries the bytes.
        raise ConfigError(file, key, "is not UTF-8 text", value=str(path)) from None
    if not password:
        raise ConfigError(file, key, "is empty", value=str(path))
    return password


def _content(path: Path, most: int) -> tuple[bytes, int]:
    """Return what a file holds, a byte more than `most` of it at most, and its permission bits.

    Raises:
        OSError: it cannot be read, or may have no end.
    """
    # Non-blocking, because it may be a pipe without a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as stream:
        found = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(found):
            raise OSError(errno.EINVAL, "it is no file")
        return stream.read(most + 1), stat.S_IMODE(found)


def _unreadable(file: Path, key: str, path: Path, error: OSError) -> ConfigError:
    return ConfigError(file, key, f"cannot be read ({error.strerror})", value=str(path))
