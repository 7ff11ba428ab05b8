"""Which role a call needs, and who has it.

    pool-admin > pool-operator > vm-power-admin > vm-admin > vm-operator > read-only

Root needs none. Everybody else has the permissions of a role: one for each method, in lower case
(`vm.snapshot`), one for each HTTP handler (`http/get_export_raw_vdi`), and some for single keys of
a map (`vm.add_to_other_config/key:folder`). Methods of which nothing is said here need what their
class needs for changes; getters need `read-only`.

Source: xapi: ocaml/idl/datamodel*.ml (allowed roles of messages, http_actions), datamodel_roles.ml,
ocaml/xapi/rbac.ml.
"""

import hashlib
import uuid as uuids
from collections.abc import Mapping
from functools import cache

from xorepd_lab.model.failures import ApiError
from xorepd_lab.model.http_actions import HTTP_ROLES
from xorepd_lab.model.schema import words

ROLES = words("read-only vm-operator vm-admin vm-power-admin pool-operator pool-admin")
"""From the least to the most."""
LOCAL_ROOT = ""
"""Stands for root, where no role will do."""
DESTROY_ANY_TASK = "task.destroy/any"
"""The permission for tasks of others."""
CALL_EXTENSION = "host.call_extension"
"""The permission for methods that XAPI does not know: they might be an extension of the host."""

_OF_CLASS = {
    cls: role
    for role, classes in {
        "read-only": "session task event role",
        "vm-admin": "VM VDI VBD VIF VM_metrics VM_guest_metrics VBD_metrics VIF_metrics VTPM"
        " console VM_group",
        "pool-admin": "subject user PUSB USB_group VUSB Observer LVHD Host_driver Driver_variant"
        " Rate_limit",
    }.items()
    for cls in classes.split()
}
_ELSEWHERE = "pool-operator"

_OTHERS = {
    "read-only": """
pool: ha_compute_hypothetical_max_host_failures_to_tolerate retrieve_wlb_configuration
pool: retrieve_wlb_recommendations
VM: assert_agile assert_can_be_recovered assert_can_boot_here assert_operation_valid
VM: compute_memory_overhead maximise_memory query_data_source recover retrieve_wlb_recommendations
VM: wait_memory_target_live
VM_appliance: assert_can_be_recovered recover
host: compute_free_memory compute_memory_overhead is_in_emergency_mode list_methods
host: list_timezones query_data_source
host: retrieve_wlb_evacuate_recommendations
SR: query_data_source
VDI: read_database_pool_uuid
message: get
""",
    "vm-operator": """
pool: gui_config* tags*
VM: call_host_plugin call_plugin clean_reboot clean_shutdown hard_reboot hard_shutdown pause resume
VM: s3_resume s3_suspend shutdown start suspend tags* unpause
host: allocate_resources_for_vm mxgpu_vf_setup nvidia_vf_setup tags*
network: tags*
VIF: configure_ipv4 configure_ipv6
SR: tags*
VDI: list_changed_blocks tags*
VBD: eject insert
""",
    "vm-admin": """
network: create destroy set_MTU
VDI: get_nbd_info
""",
    "vm-power-admin": """
VM: assert_can_migrate assert_can_migrate_sender checkpoint create_new_blob migrate_send
VM: pool_migrate pool_migrate_complete restart_device_models resume_on revert
VM: set_HVM_shadow_multiplier set_affinity set_memory set_memory_dynamic_max
VM: set_memory_dynamic_min set_memory_dynamic_range set_memory_limits set_memory_static_max
VM: set_memory_static_min set_memory_static_range set_memory_target_live set_shadow_multiplier_live
VM: snapshot snapshot_with_quiesce start_on
VMPP: archive_now
host: migrate_receive
network: attach_for_vm detach_for_vm
SR: scan
VDI: pool_migrate revert
""",
    "pool-operator": """
session: logout_subject_identifier
task: other_config*
pool: get_guest_secureboot_readiness
VM: update_snapshot_metadata
VM: import power_state_reset set_appliance set_ha_always_run set_ha_restart_priority set_order
VM: set_protection_policy set_shutdown_delay set_snapshot_schedule set_start_delay set_suspend_VDI
VMPP: get_alerts
host: get_management_interface get_sm_diagnostics get_thread_diagnostics
SR: get_live_hosts
PCI: get_dom0_access_status
VIF: add_ipv4_allowed add_ipv6_allowed remove_ipv4_allowed remove_ipv6_allowed set_ipv4_allowed
VIF: set_ipv6_allowed set_locking_mode
VDI: open_database
secret: get_all get_all_records get_all_records_where get_all_where get_by_uuid get_record get_uuid
secret: get_value
""",
    "pool-admin": """
session: local_logout other_config* slave_local_login slave_local_login_with_password slave_login
pool: add_to_guest_agent_config audit_log_append disable_external_auth disable_ssh
pool: enable_external_auth enable_ssh enable_tls_verification external_auth_set_ldaps
pool: set_console_idle_timeout set_ssh_auto_mode set_ssh_enabled_timeout
pool: has_extension is_slave remove_from_guest_agent_config reset_telemetry_uuid rotate_secret
pool: send_test_post
pool: set_custom_uefi_certificates set_telemetry_next_collection set_uefi_certificates
VM: get_secureboot_readiness query_services send_sysrq send_trigger set_is_default_template
VM: set_uefi_mode update_allowed_operations
host: apply_guest_agent_config backup_rrds call_extension call_plugin copy_primary_host_certs
host: disable_external_auth disable_ssh enable_external_auth enable_ssh external_auth_set_ldaps
host: ha_xapi_healthcheck rescan_drivers set_console_idle_timeout set_ssh_auto_mode
host: set_ssh_enabled_timeout
Caller: create destroy set_name_description set_name_label
host: has_extension install_server_certificate refresh_server_certificate reset_server_certificate
host: send_debug_keys set_numa_affinity_policy sync_data
network: add_purpose remove_purpose
""",
    LOCAL_ROOT: """
VDI: set_managed set_missing set_virtual_size set_physical_utilisation set_is_a_snapshot
VDI: set_snapshot_of set_snapshot_time set_metadata_of_pool set_cbt_enabled
VTPM: get_contents set_contents
session: change_password create_from_db_file
VMPP: set_archive_last_run_time set_backup_last_run_time
VMSS: set_last_run_time
VM: atomic_set_resident_on hard_reboot_internal set_NVRAM_EFI_variables
VDI: db_forget db_introduce
SR: set_physical_utilisation set_virtual_allocation
VGPU: atomic_set_resident_on
Cluster_host: forget
pool: ha_schedule_plan_recomputation
host: abort_new_master attach_static_vdis cert_distrib_atom certificate_list certificate_sync
host: cleanup_pool_secret commit_new_master crl_install crl_list crl_uninstall detach_static_vdis
host: disable_binary_storage enable_binary_storage get_uncooperative_domains
host: ha_disable_failover_decisions ha_disarm_fencing ha_join_liveset ha_release_resources
host: ha_stop_daemon ha_wait_for_shutdown_via_statefile install_ca_certificate local_assert_healthy
host: notify notify_accept_new_pool_secret notify_send_new_pool_secret preconfigure_ha
host: prepare_for_poweroff propose_new_master request_backup request_config_file_sync
host: set_license_params set_localdb_key signal_networking_change tickle_heartbeat
host: uninstall_ca_certificate update_master update_pool_secret write_uefi_certificates_to_disk
host: emergency_clear_mandatory_guidance emergency_disable_tls_verification
host: emergency_reenable_tls_verification emergency_reset_server_certificate get_sched_gran
host: set_sched_gran set_uefi_certificates
""",
}
"""Methods that need another role than their class, by role; `tags*` are all setters of a field."""

_SETTERS = ("set_", "add_to_", "remove_from_", "add_", "remove_")

_OF_KEYS: dict[str, dict[str, str]] = {
    "VM.other_config": {
        "pci": "pool-admin",
        "hvm_serial": "pool-admin",
        "folder": "vm-operator",
        "XenCenter.CustomFields.*": "vm-operator",
    },
    "VM.platform": {"hvm_serial": "pool-admin"},
    "VDI.other_config": {"folder": "vm-operator", "XenCenter.CustomFields.*": "vm-operator"},
    "SR.other_config": {"folder": "vm-operator", "XenCenter.CustomFields.*": "vm-operator"},
    "host.other_config": {"folder": "vm-operator", "XenCenter.CustomFields.*": "vm-operator"},
    "network.other_config": {
        "folder": "vm-operator",
        "XenCenter.CustomFields.*": "vm-operator",
        "XenCenterCreateInProgress": "vm-operator",
    },
    "pool.other_config": {
        "folder": "vm-operator",
        "XenCenter.CustomFields.*": "vm-operator",
        "EMPTY_FOLDERS": "vm-operator",
    },
    "task.other_config": {
        "applies_to": "vm-operator",
        "XenCenterUUID": "vm-operator",
        "XenCenterMeddlingActionTitle": "vm-operator",
    },
}
"""Keys with a role of their own, when they are added or removed alone."""


def _read_others() -> dict[str, str]:
    found: dict[str, str] = {}
    for role, text in _OTHERS.items():
        for line in text.strip().splitlines():
            cls, _, names = line.partition(": ")
            for name in names.split():
                if name.endswith("*"):
                    found.update(dict.fromkeys((f"{cls}.{s}{name[:-1]}" for s in _SETTERS), role))
                else:
                    found[f"{cls}.{name}"] = role
    return found


_BY_METHOD = _read_others()


def lowest_role(method: str) -> str:
    """Return the least role that may call a method; LOCAL_ROOT when only root may."""
    role = _BY_METHOD.get(method)
    if role is not None:
        return role
    cls, _, name = method.partition(".")
    return "read-only" if name.startswith("get_") else _OF_CLASS.get(cls, _ELSEWHERE)


def keys_of(method: str) -> Mapping[str, str]:
    """Return the roles of single keys that a call to add or remove one goes by."""
    cls, _, name = method.partition(".")
    for verb in ("add_to_", "remove_from_"):
        if name.startswith(verb):
            return _OF_KEYS.get(f"{cls}.{name.removeprefix(verb)}", {})
    return {}


def permission(method: str, key: str | None = None) -> str:
    """Return the permission that a call needs; `key` is what it would add or remove."""
    if key is not None:
        for pattern in keys_of(method):
            fits = key.startswith(pattern[:-1]) if pattern.endswith("*") else key == pattern
            if fits:
                return f"{method}/key:{pattern}".lower()
    return method.lower()


def role_uuid(name: str) -> str:
    """Return the UUID of a role or permission; every pool in the world has the same."""
    if name == "pool-admin":
        return "0165f154-ba3e-034e-6b27-5d271af109ba"
    digest = hashlib.md5(name.encode(), usedforsecurity=False).digest()
    return str(uuids.UUID(bytes=digest))


def role_ref(name: str) -> str:
    return f"OpaqueRef:{role_uuid(name)}"


def role_name(ref: str) -> str | None:
    """Return the name of a role by its reference; None for permissions and what is neither."""
    return _ROLES_BY_REF.get(ref)


_ROLES_BY_REF = {role_ref(name): name for name in ROLES}


def roles_from(lowest: str) -> list[str]:
    """Return a role and all above it; none for LOCAL_ROOT."""
    return [] if lowest == LOCAL_ROOT else ROLES[ROLES.index(lowest) :]


@cache
def permissions(methods: tuple[str, ...]) -> Mapping[str, str]:
    """Return every permission that exists with methods of those names, and its lowest role."""
    found = {f"http/{name}": role for name, role in HTTP_ROLES.items()}
    found[DESTROY_ANY_TASK] = "pool-operator"
    found[CALL_EXTENSION] = "pool-admin"
    for method in methods:
        found[permission(method)] = lowest_role(method)
        for key, role in keys_of(method).items():
            found[permission(method, key)] = role
    return found


@cache
def granted(role: str, methods: tuple[str, ...]) -> frozenset[str]:
    """Return the permissions of a role."""
    return frozenset(
        name for name, lowest in permissions(methods).items() if role in roles_from(lowest)
    )


def denied(name: str, lowest: str) -> ApiError:
    """Return the error of a session without a permission."""
    able = ", ".join(reversed(roles_from(lowest)))
    text = f"No permission in user session. (Roles with this permission: {able})"
    return ApiError("RBAC_PERMISSION_DENIED", name, text)
