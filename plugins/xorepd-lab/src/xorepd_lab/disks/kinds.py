"""Kinds of SR: what the driver behind an `SR.type` can do and how it spends space.

Whoever must know how an SR behaves asks `kind_of(sr["type"])` and reads a fact; no type name is
compared anywhere else. The lab keeps every disk of every kind in VHD files in the SR's directory.
A kind that is not made of VHDs must not show that through the API: no `vhd-parent`, no base copies.

    types                       disks are            space           snapshots  CBT  largest VDI
    ext nfs smb file            VHD files            as written      yes        yes  2040 GiB
    lvm lvmoiscsi lvmohba       VHDs in volumes      thick: in full  yes        yes  2040 GiB
      with VDI type=raw         volumes              in full         no         no   2040 GiB
    zfs-vol                     volumes, no VHD      as written      yes        no   16 TiB
    iso                         images               as they are     no         no   2040 GiB
    udev                        what lies there      -               no         no   none is made

Sources: sm: the CAPABILITIES of libs/sm/drivers/*.py, libs/sm/vhdutil.py (MAX_VHD_SIZE),
libs/sm/drivers/LVHDSR.py (allocation, use_vhd, raw volumes); xapi: ocaml/xapi/smint.ml.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from xorepd_lab.model.failures import ApiError
from xorepd_lab.model.schema import words

MAX_VHD: Final = 2040 << 30
MAX_VOLUME: Final = 16 << 40
"""Of the kind without VHD; no source, the lab draws a line somewhere."""
USE_VHD: Final = {"use_vhd": "true"}


@dataclass(frozen=True, slots=True)
class SrKind:
    """One driver of sm.

    Attributes:
        type: `SR.type` and `SM.type`.
        label: `SM.name_label`.
        features: `SM.features`, each with its version.
        content_type: `SR.content_type`.
        vhd_backed: Chains of VHDs that clients can see: `vhd-parent`, base copies, deltas.
        volumes: Disks are logical volumes, in extents of 4 MiB.
        thick: A VDI costs its full size from the beginning, unless the SR says `allocation=thin`.
        max_size: Largest virtual size in bytes.
        snapshots: Whether VDIs can be snapshotted and cloned.
        cbt: Whether changed blocks can be tracked.
        read_only: Clients cannot make or write VDIs.
        sm_config: What the driver leaves in `SR.sm_config` when it makes an SR.
    """

    type: str
    label: str
    features: Mapping[str, int]
    content_type: str = "user"
    vhd_backed: bool = True
    volumes: bool = False
    thick: bool = False
    max_size: int = MAX_VHD
    snapshots: bool = True
    cbt: bool = True
    read_only: bool = False
    sm_config: Mapping[str, str] = field(default_factory=dict)

    @property
    def images(self) -> bool:
        """Whether disks are images that lie in files with names of their own."""
        return self.content_type == "iso"

    def is_vhd(self, vdi_sm_config: Mapping[str, str]) -> bool:
        """Tell whether a VDI with that `sm_config` is a VHD: raw volumes are not."""
        return self.vhd_backed and vdi_sm_config.get("type") != "raw"

    def is_thick(self, sr_sm_config: Mapping[str, str]) -> bool:
        """Tell whether VDIs of an SR with that `sm_config` cost their full size."""
        return self.thick and sr_sm_config.get("allocation") != "thin"

    def is_prezeroed(
        self, sr_sm_config: Mapping[str, str], vdi_sm_config: Mapping[str, str]
    ) -> bool:
        """Tell whether a fresh VDI reads as zeroes for sure; a VHD is imported only into such.

        Source: xapi: ocaml/xapi/sm_fs_ops.ml (must_write_zeroes_into_new_vdi).
        """
        if not (self.volumes and self.vhd_backed):
            return True
        return sr_sm_config.get("use_vhd") == "true" and vdi_sm_config.get("type") != "raw"


def _features(text: str) -> dict[str, int]:
    """Read `NAME` and `NAME/2`."""
    pairs = (word.partition("/") for word in words(text))
    return {name: int(version or 1) for name, _, version in pairs}


_COMMON = (
    "SR_PROBE SR_UPDATE VDI_CREATE VDI_DELETE VDI_ATTACH VDI_DETACH VDI_CLONE VDI_SNAPSHOT"
    " VDI_RESIZE VDI_MIRROR VDI_ACTIVATE VDI_DEACTIVATE"
)
_FILE = f"{_COMMON} VDI_GENERATE_CONFIG VDI_CONFIG_CBT THIN_PROVISIONING"
_MOUNTED = f"{_FILE} VDI_UPDATE VDI_RESET_ON_BOOT/2 VDI_READ_CACHING"
_LVM = f"{_COMMON} SR_TRIM VDI_RESET_ON_BOOT/2 VDI_UPDATE VDI_CONFIG_CBT"
_LUN = f"{_LVM} SR_METADATA SR_CACHING VDI_GENERATE_CONFIG"

KINDS: Final[dict[str, SrKind]] = {
    kind.type: kind
    for kind in (
        SrKind("ext", "Local EXT3 VHD", _features(f"{_MOUNTED} SR_SUPPORTS_LOCAL_CACHING")),
        SrKind("nfs", "NFS VHD", _features(f"{_MOUNTED} SR_CACHING")),
        SrKind("smb", "SMB VHD", _features(f"{_MOUNTED} SR_CACHING")),
        SrKind("file", "Local Path VHD", _features(_FILE)),
        SrKind(
            "lvm",
            "Local VHD on LVM",
            _features(_LVM),
            volumes=True,
            thick=True,
            sm_config=USE_VHD,
        ),
        SrKind(
            "lvmoiscsi",
            "LVHD over iSCSI",
            _features(_LUN),
            volumes=True,
            thick=True,
            sm_config=USE_VHD | {"allocation": "thick"},
        ),
        SrKind(
            "lvmohba",
            "LVHD over FC",
            _features(_LUN),
            volumes=True,
            thick=True,
            sm_config=USE_VHD | {"allocation": "thick"},
        ),
        SrKind(
            "zfs-vol",
            "ZFS volumes",
            _features(f"{_COMMON} VDI_UPDATE LARGE_VDI THIN_PROVISIONING"),
            vhd_backed=False,
            volumes=True,
            max_size=MAX_VOLUME,
            cbt=False,
        ),
        SrKind(
            "iso",
            "ISO",
            _features("VDI_CREATE VDI_DELETE VDI_ATTACH VDI_DETACH SR_SCAN SR_ATTACH SR_DETACH"),
            content_type="iso",
            vhd_backed=False,
            snapshots=False,
            cbt=False,
        ),
        SrKind(
            "udev",
            "udev",
            _features("VDI_INTRODUCE VDI_ATTACH VDI_DETACH VDI_UPDATE SR_UPDATE"),
            content_type="disk",
            vhd_backed=False,
            snapshots=False,
            cbt=False,
            read_only=True,
        ),
    )
}


def kind_of(sr_type: str) -> SrKind:
    """Return the kind of an `SR.type`.

    Raises:
        ApiError: SR_UNKNOWN_DRIVER [type].
    """
    try:
        return KINDS[sr_type.lower()]
    except KeyError:
        raise ApiError("SR_UNKNOWN_DRIVER", sr_type) from None
