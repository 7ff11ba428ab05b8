"""The classes of XAPI's data model that the lab brings to life, and how references mirror.

Notation: see `schema`. Source: xapi: ocaml/idl/datamodel.ml, datamodel_vm.ml, datamodel_host.ml,
datamodel_pool.ml, datamodel_vtpm.ml. Getters, setters, record calls, argument checks of `create`
and inverse sets all derive from this one page.
"""

from collections.abc import Mapping
from typing import NamedTuple

from xorepd_lab.model import bystanders
from xorepd_lab.model.schema import ClassSpec, parse_class

VM_OPERATIONS = (
    "snapshot clone copy create_template revert checkpoint snapshot_with_quiesce provision start"
    " start_on pause unpause clean_shutdown clean_reboot hard_shutdown power_state_reset"
    " hard_reboot suspend csvm resume resume_on pool_migrate migrate_send get_boot_record"
    " send_sysrq send_trigger query_services shutdown call_plugin changing_memory_live"
    " awaiting_memory_live changing_dynamic_range changing_static_range changing_memory_limits"
    " changing_shadow_memory changing_shadow_memory_live changing_VCPUs changing_VCPUs_live"
    " changing_NVRAM assert_operation_valid data_source_op update_allowed_operations"
    " make_into_template import export metadata_export reverting destroy create_vtpm sysprep"
)
SR_OPERATIONS = (
    "scan destroy forget plug unplug update vdi_create vdi_introduce vdi_destroy vdi_resize"
    " vdi_clone vdi_snapshot vdi_mirror vdi_enable_cbt vdi_disable_cbt vdi_data_destroy"
    " vdi_list_changed_blocks vdi_set_on_boot vdi_revert pbd_create pbd_destroy"
)
VDI_OPERATIONS = (
    "clone copy resize resize_online snapshot mirror destroy forget update force_unlock"
    " generate_config enable_cbt disable_cbt data_destroy list_changed_blocks set_on_boot blocked"
    " revert_to revert_from"
)
HOST_OPERATIONS = (
    "provision evacuate shutdown reboot power_on vm_start vm_resume vm_migrate apply_updates enable"
)
POOL_OPERATIONS = (
    "ha_enable ha_disable cluster_create designate_new_master configure_repositories sync_updates"
    " get_updates apply_updates tls_verification_enable cert_refresh exchange_certificates_on_join"
    " exchange_ca_certificates_on_join copy_primary_host_certs eject"
)

ENUMS = {
    "vm_operations": VM_OPERATIONS,
    "sr_operations": SR_OPERATIONS,
    "vdi_operations": VDI_OPERATIONS,
    "host_operations": HOST_OPERATIONS,
    "vbd_operations": "attach eject insert plug unplug unplug_force pause unpause",
    "vif_operations": "attach plug unplug",
    "pool_operations": POOL_OPERATIONS,
    "network_operations": "attaching",
    "network_purpose": "nbd insecure_nbd",
    "task_operations": "cancel destroy",
    "vtpm_operations": "destroy",
    "power_state": "Halted Paused Running Suspended",
    "on_softreboot": "soft_reboot destroy restart preserve",
    "on_normal_exit": "destroy restart",
    "on_crash": "destroy coredump_and_destroy restart coredump_and_restart preserve rename_restart",
    "domain_type": "hvm pv pv_in_pvh pvh unspecified",
    "guidances": "reboot_host reboot_host_on_livepatch_failure"
    " reboot_host_on_kernel_livepatch_failure reboot_host_on_xen_livepatch_failure"
    " restart_toolstack restart_device_model restart_vm",
    "vdi_type": "system user ephemeral suspend crashdump ha_statefile metadata redo_log rrd"
    " pvs_cache cbt_metadata",
    "on_boot": "persist reset",
    "vbd_mode": "RO RW",
    "vbd_type": "CD Disk Floppy",
    "locking_mode": "network_default locked unlocked disabled",
    "default_locking_mode": "unlocked disabled",
    "vif_ip_mode": "None Static",
    "ip_mode": "None DHCP Static",
    "ipv6_mode": "None DHCP Static Autoconf",
    "address_type": "IPv4 IPv6",
    "igmp_status": "enabled disabled unknown",
    "host_display": "enabled disable_on_reboot disabled enable_on_reboot",
    "synced_updates": "yes no unknown",
    "numa_policy": "any best_effort default_policy",
    "telemetry_frequency": "daily weekly monthly",
    "update_sync_frequency": "daily weekly",
    "host_ntp_mode": "DHCP Custom Factory Disabled",
    "host_sched_gran": "core cpu socket",
    "image_format_type": "raw vhd qcow2",
    "update_status": "yes no unspecified",
    "vm_secureboot_certificates_state": "ok update_available update_on_boot",
    "vm_uefi_mode": "setup user",
    "tristate": "yes no unspecified",
    "task_status": "pending success failure cancelling cancelled",
    "message_class": "VM Host SR Pool VMPP VMSS PVS_proxy VDI Certificate",
    "persistence_backend": "xapi",
    **bystanders.ENUMS,
}

TABLES = {
    "pool": """
string: uuid name_label~w name_description~w wlb_url wlb_username vswitch_controller
string: ha_cluster_stack uefi_certificates custom_uefi_certificates client_certificate_auth_name
string: repository_proxy_url repository_proxy_username
int: ha_host_failures_to_tolerate ha_plan_exists_for local_auth_max_threads=8
int: ext_auth_max_threads=1 update_sync_day ext_auth_cache_size=50* ext_auth_cache_expiry=300*
int: vm_console_idle_timeout~w*
bool: ha_enabled ha_allow_overcommit~w ha_overcommitted wlb_enabled~w wlb_verify_cert~w
bool: redo_log_enabled policy_no_vendor_device~w live_patching_disabled~w igmp_snooping_enabled
bool: is_psr_pending~w tls_verification_enabled client_certificate_auth_enabled
bool: migration_compression~w coordinator_bias~w=true update_sync_enabled
bool: ext_auth_cache_enabled=true* ha_reboot_vm_on_internal_shutdown~w=true*
bool: limit_console_sessions~w* auto_update_vm_secureboot_certificates~w*
datetime: telemetry_next_collection last_update_sync
map string string: other_config~w ha_configuration gui_config~w health_check_config~w restrictions
map string string: guest_agent_config cpu_info recommendations* license_server~w*
map string ref blob: blobs
map string pool_operations: current_operations
set string: ha_statefiles tags~w
set pool_operations: allowed_operations
telemetry_frequency: telemetry_frequency=weekly
update_sync_frequency: update_sync_frequency=weekly
ref host: master
ref SR: default_SR~w suspend_image_SR~w crash_dump_SR~w
ref VDI: redo_log_vdi
ref secret: repository_proxy_password telemetry_uuid
set ref VDI: metadata_VDIs
set ref Repository: repositories
""",
    "host": """
string: uuid name_label~w name_description~w sched_policy hostname~w address~w external_auth_type
string: external_auth_service_name edition power_on_mode iscsi_iqn uefi_certificates
string: last_update_hash API_version_vendor max_cstate* timezone=UTC*
int: memory_overhead API_version_major API_version_minor ssh_enabled_timeout* console_idle_timeout*
bool: enabled ssl_legacy=true multipathing tls_verification_enabled https_only ssh_enabled=true*
bool: ssh_auto_mode* secure_boot*
datetime: last_software_update ssh_expiry*
map string string: software_version other_config~w cpu_configuration logging~w cpu_info
map string string: license_params external_auth_configuration bios_strings power_on_config
map string string: license_server~w=address:localhost,port:27000 chipset_info guest_VCPUs_params~w
map string string: API_version_vendor_implementation
map string ref blob: blobs
map string host_operations: current_operations
set string: capabilities supported_bootloaders ha_statefiles ha_network_peers tags~w editions
set string: ntp_custom_servers*
set int: virtual_hardware_platform_versions=0
host_display: display~w=enabled
synced_updates: latest_synced_updates_applied=unknown
numa_policy: numa_affinity_policy=default_policy
host_ntp_mode: ntp_mode=Factory*
set host_operations: allowed_operations
ref SR: suspend_image_sr~w crash_dump_sr~w local_cache_sr
ref host_metrics: metrics
ref VM: control_domain
set ref VM: resident_VMs
set ref PIF: PIFs
set ref host_crashdump: crashdumps
set ref host_patch: patches
set ref pool_update: updates updates_requiring_reboot
set ref PBD: PBDs
set ref host_cpu: host_CPUs
set ref PCI: PCIs
set ref PGPU: PGPUs
set ref PUSB: PUSBs
set ref Feature: features
set ref Certificate: certificates
set guidances: pending_guidances pending_guidances_recommended pending_guidances_full
""",
    "host_metrics": """
string: uuid
int: memory_total memory_free
bool: live
datetime: last_updated
map string string: other_config~w
""",
    "VM": """
string: uuid name_label?w name_description?w PV_bootloader!w PV_kernel!w PV_ramdisk!w PV_args!w
string: PV_bootloader_args!w PV_legacy_args!w HVM_boot_policy! PCI_bus!w domarch
string: last_booted_record? recommendations!w ha_restart_priority? transportable_snapshot_id
string: snapshot_metadata generation_id?=0:0 reference_label?
int: user_version!w memory_overhead memory_target? memory_static_max! memory_dynamic_max!
int: memory_dynamic_min! memory_static_min! VCPUs_max! VCPUs_at_startup! domid=-1 start_delay?
int: shutdown_delay? order? version? hardware_platform_version?w
bool: is_a_template!w is_default_template is_control_domain ha_always_run? is_a_snapshot
bool: is_snapshot_from_vmpp? is_vmss_snapshot? has_vendor_device?=true requires_reboot
float: HVM_shadow_multiplier?=1.0
datetime: snapshot_time
map string string: VCPUs_params!w HVM_boot_params!w platform!w other_config!w last_boot_CPU_flags?
map string string: xenstore_data?w snapshot_info bios_strings NVRAM?
map vm_operations string: blocked_operations?
map string vm_operations: current_operations
map string ref blob: blobs
set vm_operations: allowed_operations
set string: tags?w
power_state: power_state?=Halted
on_softreboot: actions_after_softreboot?=soft_reboot
on_normal_exit: actions_after_shutdown!w actions_after_reboot!w
on_crash: actions_after_crash!
domain_type: domain_type?=unspecified
vm_secureboot_certificates_state: secureboot_certificates_state*
ref VDI: suspend_VDI?
ref host: resident_on scheduled_to_be_resident_on affinity!w
ref VM_metrics: metrics
ref VM_guest_metrics: guest_metrics
ref VM: snapshot_of parent
ref VMPP: protection_policy?
ref VMSS: snapshot_schedule?
ref VM_appliance: appliance?
ref SR: suspend_SR?w
set ref console: consoles
set ref VIF: VIFs
set ref VBD: VBDs
set ref VUSB: VUSBs
set ref crashdump: crash_dumps
set ref VTPM: VTPMs
set ref VM: snapshots children
set ref VGPU: VGPUs
set ref PCI: attached_PCIs
set ref VM_group: groups*
set guidances: pending_guidances pending_guidances_recommended pending_guidances_full
""",
    "VM_metrics": """
string: uuid
int: memory_actual VCPUs_number
map int float: VCPUs_utilisation
map int int: VCPUs_CPU
map string string: VCPUs_params other_config~w
map int set string: VCPUs_flags
set string: state
datetime: start_time install_time last_updated
bool: hvm nested_virt nomigrate numa_optimised*
domain_type: current_domain_type=unspecified
int: numa_nodes*
map int int: numa_node_memory*
""",
    "VM_guest_metrics": """
string: uuid
map string string: os_version PV_drivers_version memory disks networks other other_config~w
map string string: netbios_name* services*
bool: PV_drivers_up_to_date live PV_drivers_detected
datetime: last_updated
tristate: can_use_hotplug_vbd=unspecified can_use_hotplug_vif=unspecified
""",
    "VDI": """
string: uuid name_label? name_description? location
int: virtual_size! physical_utilisation
bool: sharable! read_only! storage_lock managed=true missing is_a_snapshot allow_caching
bool: metadata_latest is_tools_iso cbt_enabled
datetime: snapshot_time
map string string: other_config!w xenstore_data?w sm_config?w
map string vdi_operations: current_operations
set string: tags?w
set vdi_operations: allowed_operations
vdi_type: type!
on_boot: on_boot=persist
ref SR: SR!
ref VDI: parent snapshot_of
ref pool: metadata_of_pool
set ref VBD: VBDs
set ref crashdump: crash_dumps
set ref VDI: snapshots
""",
    "VBD": """
string: uuid device? userdevice!w status_detail qos_algorithm_type!w
int: status_code
bool: bootable!w unpluggable?w=true storage_lock empty! currently_attached?
map string string: other_config!w runtime_properties qos_algorithm_params!w
map string vbd_operations: current_operations
set vbd_operations: allowed_operations
set string: qos_supported_algorithms
vbd_mode: mode!
vbd_type: type!w
ref VM: VM!
ref VDI: VDI!
ref VBD_metrics: metrics
""",
    "VIF": """
string: uuid device! MAC! status_detail qos_algorithm_type!w ipv4_gateway ipv6_gateway
int: MTU! status_code
bool: currently_attached? MAC_autogenerated
map string string: other_config!w runtime_properties qos_algorithm_params!w
map string vif_operations: current_operations
set vif_operations: allowed_operations
set string: qos_supported_algorithms ipv4_allowed? ipv6_allowed? ipv4_addresses ipv6_addresses
set int: trunks?*
locking_mode: locking_mode?=network_default
vif_ip_mode: ipv4_configuration_mode=None ipv6_configuration_mode=None
ref network: network!
ref VM: VM!
ref VIF_metrics: metrics
""",
    "SR": """
string: uuid name_label?w name_description?w type! content_type!
int: virtual_allocation physical_utilisation physical_size!
bool: shared local_cache_enabled clustered is_tools_sr
map string string: other_config!w sm_config?w
map string ref blob: blobs
map string sr_operations: current_operations
set string: tags?w
set sr_operations: allowed_operations
ref DR_task: introduced_by
set ref VDI: VDIs
set ref PBD: PBDs
""",
    "PBD": """
string: uuid
bool: currently_attached
map string string: device_config! other_config?w
ref host: host!
ref SR: SR!
""",
    "SM": """
string: uuid name_label name_description type vendor copyright version required_api_version
string: driver_filename
map string string: configuration other_config~w
map string int: features
set string: capabilities required_cluster_stack
set image_format_type: supported_image_formats*
""",
    "network": """
string: uuid name_label?w name_description?w bridge?
int: MTU?w=1500
bool: managed?=true
map string string: other_config!w
map string ref blob: blobs
map ref VIF string: assigned_ips
map string network_operations: current_operations
set string: tags?w
set network_purpose: purpose
set network_operations: allowed_operations
default_locking_mode: default_locking_mode=unlocked
set ref VIF: VIFs
set ref PIF: PIFs
""",
    "PIF": """
string: uuid device! MAC! IP netmask gateway DNS ipv6_gateway
int: MTU! VLAN!
bool: physical currently_attached=true management disallow_unplug managed?=true
ip_mode: ip_configuration_mode=None
ipv6_mode: ipv6_configuration_mode=None
address_type: primary_address_type=IPv4
igmp_status: igmp_snooping_status=unknown
map string string: other_config?w properties
set string: IPv6 capabilities
ref network: network!
ref host: host!
ref PIF_metrics: metrics
ref Bond: bond_slave_of
ref VLAN: VLAN_master_of
ref PCI: PCI
set ref Bond: bond_master_of
set ref VLAN: VLAN_slave_of
set ref tunnel: tunnel_access_PIF_of tunnel_transport_PIF_of
set ref network_sriov: sriov_physical_PIF_of sriov_logical_PIF_of
""",
    "VTPM": """
string: uuid
ref VM: VM! backend
persistence_backend: persistence_backend=xapi
bool: is_unique? is_protected
map string vtpm_operations: current_operations
set vtpm_operations: allowed_operations
""",
    "task": """
string: uuid name_label name_description type=<none/> result backtrace=()
datetime: created finished
task_status: status
float: progress
set string: error_info
map string string: other_config~w
map string task_operations: current_operations
set task_operations: allowed_operations
ref host: resident_on
ref task: subtask_of
set ref task: subtasks
""",
    "session": """
string: uuid auth_user_sid auth_user_name originator
datetime: last_active validation_time
bool: pool is_local_superuser client_certificate
map string string: other_config?w
set string: rbac_permissions
ref host: this_host
ref user: this_user
ref subject: subject
ref session: parent
set ref task: tasks
""",
    "message": """
string: uuid name obj_uuid body
int: priority
message_class: cls
datetime: timestamp
""",
}


class Relation(NamedTuple):
    """`cls.field` holds a reference to `target`, whose set `inverse` lists the holders."""

    cls: str
    field: str
    target: str
    inverse: str


RELATIONS = [
    Relation(*line.split())
    for line in """
VBD VM VM VBDs
VBD VDI VDI VBDs
VIF VM VM VIFs
VIF network network VIFs
VTPM VM VM VTPMs
VDI SR SR VDIs
VDI snapshot_of VDI snapshots
VM snapshot_of VM snapshots
VM parent VM children
VM resident_on host resident_VMs
PBD SR SR PBDs
PBD host host PBDs
PIF host host PIFs
PIF network network PIFs
VDI metadata_of_pool pool metadata_VDIs
task subtask_of task subtasks
""".strip().splitlines()
    + bystanders.RELATIONS.strip().splitlines()
]
"""From xapi: ocaml/idl/datamodel.ml, all_relations; one-to-many ones between the classes here."""


def _read(tables: Mapping[str, str], newer: bool = False) -> dict[str, ClassSpec]:
    return {name: parse_class(name, table, ENUMS, newer) for name, table in tables.items()}


CLASSES = _read(TABLES | bystanders.TABLES)
"""The classes and fields of XCP-ng 8.3."""
NEWER_CLASSES = _read(TABLES | bystanders.TABLES | bystanders.NEWER_TABLES, newer=True)
"""The same with what later releases added, up to xapi 26.17."""

CLASSES_OF: dict[str, dict[str, ClassSpec]] = {"8.3": CLASSES, "26": NEWER_CLASSES}
"""The data model by `PoolSpec.release`."""
OTHER_NAMES = {"newer": "26"}
"""What releases were called before, as saved labs may."""

NOT_IN_DATABASE = {"message"}
"""Classes that XAPI keeps elsewhere: missing in `valid_ref_counts`, listed first among events."""
