"""Classes that every pool has and in which little or nothing happens here.

Clients list them all the same: with getters, with `event.from`, in `valid_ref_counts`. Most of
their tables stay empty.

Notation: see `schema`. Source: xapi: ocaml/idl/datamodel.ml, datamodel_certificate.ml,
datamodel_cluster.ml, datamodel_observer.ml, datamodel_repository.ml, datamodel_vm_group.ml.
"""

ENUMS = {
    "after_apply_guidance": "restartHVM restartPV restartHost restartXAPI",
    "allocation_algorithm": "breadth_first depth_first",
    "bond_mode": "balance-slb active-backup lacp",
    "certificate_purpose": "licensing ldaps",
    "certificate_type": "ca host host_internal pinned",
    "cluster_host_operation": "enable disable destroy",
    "cluster_operation": "add remove enable disable destroy",
    "console_protocol": "vt100 rfb rdp",
    "pci_dom0_access": "enabled disable_on_reboot disabled enable_on_reboot",
    "pgpu_dom0_access": "enabled disable_on_reboot disabled enable_on_reboot",
    "repository_origin": "remote bundle remote_pool",
    "pvs_proxy_status": "stopped initialised caching incompatible_write_cache_mode "
    "incompatible_protocol_version",
    "sdn_controller_protocol": "ssl pssl",
    "sriov_configuration_mode": "sysfs modprobe manual unknown",
    "tunnel_protocol": "gre vxlan",
    "update_after_apply_guidance": "restartHVM restartPV restartHost restartXAPI",
    "vgpu_type_implementation": "passthrough nvidia nvidia_sriov gvt_g mxgpu",
    "vm_appliance_operation": "start clean_shutdown hard_shutdown shutdown",
    "vmpp_archive_frequency": "never always_after_backup daily weekly",
    "vmpp_archive_target_type": "none cifs nfs",
    "vmpp_backup_frequency": "hourly daily weekly",
    "vmpp_backup_type": "snapshot checkpoint",
    "vmss_frequency": "hourly daily weekly",
    "vmss_type": "snapshot checkpoint snapshot_with_quiesce",
    "vusb_operations": "attach plug unplug",
    "placement_policy": "anti_affinity normal",
}

TABLES = {
    "subject": """
string: uuid subject_identifier?
map string string: other_config?
set ref role: roles
""",
    "role": """
string: uuid name_label name_description
set ref role: subroles
bool: is_internal
""",
    "pool_patch": """
string: uuid name_label name_description version
int: size
bool: pool_applied
set ref host_patch: host_patches
set after_apply_guidance: after_apply_guidance
ref pool_update: pool_update
map string string: other_config~w
""",
    "pool_update": """
string: uuid name_label name_description version key
int: installation_size
set update_after_apply_guidance: after_apply_guidance
ref VDI: vdi
set ref host: hosts
map string string: other_config~w
bool: enforce_homogeneity
""",
    "VMPP": """
string: uuid name_label?w name_description?w
bool: is_policy_enabled?w=true is_backup_running is_archive_running is_alarm_enabled?
vmpp_backup_type: backup_type?w
int: backup_retention_value?=7
vmpp_backup_frequency: backup_frequency?=daily
map string string: backup_schedule? archive_target_config? archive_schedule? alarm_config?
datetime: backup_last_run_time archive_last_run_time
vmpp_archive_target_type: archive_target_type?
vmpp_archive_frequency: archive_frequency?
set ref VM: VMs
set string: recent_alerts
""",
    "VMSS": """
string: uuid name_label?w name_description?w
bool: enabled?w=true
vmss_type: type!
int: retained_snapshots?=7
vmss_frequency: frequency!
map string string: schedule?
datetime: last_run_time
set ref VM: VMs
""",
    "VM_appliance": """
string: uuid name_label?w name_description?w
set vm_appliance_operation: allowed_operations
map string vm_appliance_operation: current_operations
set ref VM: VMs
""",
    "DR_task": """
string: uuid
set ref SR: introduced_SRs
""",
    "host_crashdump": """
string: uuid
ref host: host
datetime: timestamp
int: size
map string string: other_config~w
""",
    "host_patch": """
string: uuid name_label name_description version
ref host: host
bool: applied
datetime: timestamp_applied
int: size
ref pool_patch: pool_patch
map string string: other_config~w
""",
    "host_cpu": """
string: uuid vendor modelname stepping flags features
ref host: host
int: number speed family model
float: utilisation
map string string: other_config~w
""",
    "VIF_metrics": """
string: uuid
float: io_read_kbs io_write_kbs
datetime: last_updated
map string string: other_config~w
""",
    "PIF_metrics": """
string: uuid vendor_id vendor_name device_id device_name pci_bus_path
float: io_read_kbs io_write_kbs
bool: carrier duplex
int: speed
datetime: last_updated
map string string: other_config~w
""",
    "Bond": """
string: uuid
ref PIF: master primary_slave
set ref PIF: slaves
map string string: other_config~w properties
bond_mode: mode
int: links_up
bool: auto_update_mac=true
""",
    "VLAN": """
string: uuid
ref PIF: tagged_PIF untagged_PIF
int: tag=-1
map string string: other_config~w
""",
    "LVHD": """
string: uuid
""",
    "VBD_metrics": """
string: uuid
float: io_read_kbs io_write_kbs
datetime: last_updated
map string string: other_config~w
""",
    "crashdump": """
string: uuid
ref VM: VM
ref VDI: VDI
map string string: other_config~w
""",
    "console": """
string: uuid location
console_protocol: protocol
ref VM: VM
map string string: other_config!w
""",
    "user": """
string: uuid short_name! fullname!w
map string string: other_config?w
""",
    "blob": """
string: uuid name_label~w name_description~w mime_type
int: size
bool: public~w
datetime: last_updated
""",
    "secret": """
string: uuid value!w
map string string: other_config?w
""",
    "tunnel": """
string: uuid
ref PIF: access_PIF transport_PIF
map string string: status~w=active:false other_config~w
tunnel_protocol: protocol~w
""",
    "network_sriov": """
string: uuid
ref PIF: physical_PIF logical_PIF
bool: requires_reboot
sriov_configuration_mode: configuration_mode=unknown
""",
    "PCI": """
string: uuid class_name vendor_name device_name pci_id subsystem_vendor_name subsystem_device_name
string: driver_name class_id* vendor_id* device_id* subsystem_vendor_id* subsystem_device_id*
ref host: host
set ref PCI: dependencies
map string string: other_config~w
""",
    "PGPU": """
string: uuid
ref PCI: PCI
ref GPU_group: GPU_group
ref host: host
map string string: other_config~w compatibility_metadata
set ref VGPU_type: supported_VGPU_types enabled_VGPU_types
set ref VGPU: resident_VGPUs
map ref VGPU_type int: supported_VGPU_max_capacities
pgpu_dom0_access: dom0_access
bool: is_system_display_device
""",
    "GPU_group": """
string: uuid name_label~w name_description~w
set ref PGPU: PGPUs
set ref VGPU: VGPUs
set string: GPU_types
map string string: other_config~w
allocation_algorithm: allocation_algorithm~w=depth_first
set ref VGPU_type: supported_VGPU_types enabled_VGPU_types
""",
    "VGPU": """
string: uuid device=0 extra_args~w
ref VM: VM
ref GPU_group: GPU_group
bool: currently_attached
map string string: other_config~w compatibility_metadata
ref VGPU_type: type
ref PGPU: resident_on scheduled_to_be_resident_on
ref PCI: PCI
""",
    "VGPU_type": """
string: uuid vendor_name model_name identifier
int: framebuffer_size max_heads max_resolution_x max_resolution_y
set ref PGPU: supported_on_PGPUs enabled_on_PGPUs
set ref VGPU: VGPUs
set ref GPU_group: supported_on_GPU_groups enabled_on_GPU_groups
vgpu_type_implementation: implementation
bool: experimental
set ref VGPU_type: compatible_types_in_vm
""",
    "PVS_site": """
string: uuid name_label~w name_description~w PVS_uuid
set ref PVS_cache_storage: cache_storage
set ref PVS_server: servers
set ref PVS_proxy: proxies
""",
    "PVS_server": """
string: uuid
set string: addresses
int: first_port last_port
ref PVS_site: site
""",
    "PVS_proxy": """
string: uuid
ref PVS_site: site
ref VIF: VIF
bool: currently_attached
pvs_proxy_status: status
""",
    "PVS_cache_storage": """
string: uuid
ref host: host?
ref SR: SR?
ref PVS_site: site?
int: size?=21474836480
ref VDI: VDI
""",
    "Feature": """
string: uuid name_label name_description version=1.0
bool: enabled experimental
ref host: host
""",
    "SDN_controller": """
string: uuid address
sdn_controller_protocol: protocol
int: port
""",
    "PUSB": """
string: uuid path vendor_id vendor_desc product_id product_desc serial version description
ref USB_group: USB_group
ref host: host
bool: passthrough_enabled
map string string: other_config~w
float: speed=-1.0
""",
    "USB_group": """
string: uuid name_label~w name_description~w
set ref PUSB: PUSBs
set ref VUSB: VUSBs
map string string: other_config~w
""",
    "VUSB": """
string: uuid
set vusb_operations: allowed_operations
map string vusb_operations: current_operations
ref VM: VM
ref USB_group: USB_group
map string string: other_config~w
bool: currently_attached
""",
    "Cluster": """
string: uuid cluster_token cluster_stack=corosync
set ref Cluster_host: cluster_hosts
set string: pending_forget
bool: is_quorate pool_auto_join=true
int: quorum live_hosts cluster_stack_version=2 expected_hosts*
set cluster_operation: allowed_operations
map string cluster_operation: current_operations
float: token_timeout=20.0 token_timeout_coefficient=1.0
map string string: cluster_config other_config~w
""",
    "Cluster_host": """
string: uuid
ref Cluster: cluster
ref host: host
bool: enabled joined=true live
ref PIF: PIF
datetime: last_update_live
set cluster_host_operation: allowed_operations
map string cluster_host_operation: current_operations
map string string: other_config
""",
    "Certificate": """
string: uuid name fingerprint fingerprint_sha256* fingerprint_sha1*
certificate_type: type=host
set certificate_purpose: purpose*
ref host: host
datetime: not_before not_after
""",
    "Repository": """
string: uuid name_label~w name_description~w binary_url source_url hash gpgkey_path certificate*
repository_origin: origin*
bool: update up_to_date
""",
    "Observer": """
string: uuid name_label?w name_description?w
set ref host: hosts?
map string string: attributes?
set string: endpoints? components?
bool: enabled?
""",
}

NEWER_TABLES = {
    "VM_group": """
string: uuid name_label?w name_description?w
placement_policy: placement?=normal
set ref VM: VMs
""",
    "Host_driver": """
string: uuid name friendly_name type description info
ref host: host
set ref Driver_variant: variants
ref Driver_variant: active_variant selected_variant
""",
    "Driver_variant": """
string: uuid name version status
ref Host_driver: driver
bool: hardware_present
float: priority
""",
    "Caller": """
string: uuid name_label?w name_description?w user_agent? client_ip?
datetime: last_access
set string: groups
ref Rate_limit: rate_limit
bool: auto_registered
""",
    "Rate_limit": """
string: uuid name_label?w name_description?w
set ref Caller: callers
float: burst_size? fill_rate?
""",
}
"""Classes that releases up to XCP-ng 8.3 do not have."""

RELATIONS = """
crashdump VM VM crash_dumps
crashdump VDI VDI crash_dumps
console VM VM consoles
host_cpu host host host_CPUs
host_crashdump host host crashdumps
host_patch host host patches
host_patch pool_patch pool_patch host_patches
VM protection_policy VMPP VMs
VM snapshot_schedule VMSS VMs
VM appliance VM_appliance VMs
SR introduced_by DR_task introduced_SRs
PIF bond_slave_of Bond slaves
Bond master PIF bond_master_of
VLAN tagged_PIF PIF VLAN_slave_of
tunnel access_PIF PIF tunnel_access_PIF_of
tunnel transport_PIF PIF tunnel_transport_PIF_of
network_sriov physical_PIF PIF sriov_physical_PIF_of
network_sriov logical_PIF PIF sriov_logical_PIF_of
Cluster_host cluster Cluster cluster_hosts
PGPU GPU_group GPU_group PGPUs
PGPU host host PGPUs
VGPU GPU_group GPU_group VGPUs
VGPU type VGPU_type VGPUs
VGPU VM VM VGPUs
VGPU resident_on PGPU resident_VGPUs
PCI host host PCIs
PUSB host host PUSBs
PUSB USB_group USB_group PUSBs
VUSB USB_group USB_group VUSBs
VUSB VM VM VUSBs
Feature host host features
Certificate host host certificates
PVS_server site PVS_site servers
PVS_proxy site PVS_site proxies
PVS_cache_storage site PVS_site cache_storage
Driver_variant driver Host_driver variants
Caller rate_limit Rate_limit callers
"""
"""As in `datamodel`: class, field, class it refers to, that class's set of the referring ones."""
