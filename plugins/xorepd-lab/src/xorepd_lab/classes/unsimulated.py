"""Calls that XAPI has and the lab does not simulate: known, checked, and then NOT_IMPLEMENTED.

A client that asks whether a method is there is told the truth, so is one with too few arguments,
without a session, without the role, or with a reference to nothing.

    class(parameters): names

with marks behind a name: `*` releases up to XCP-ng 8.3 do not have it, `!` only members of the pool
may call it, `~` it has no `Async.` form.

Source: xapi: ocaml/idl/datamodel*.ml at v24.19.0 and v26.17.0.
"""

import re
from collections.abc import Iterator
from typing import Any

from xorepd_lab.calls.call import Call
from xorepd_lab.calls.signatures import METHODS, Method, Parameter, read_parameters, register
from xorepd_lab.model.failures import NULL, internal_error, not_simulated

_CALLS = """
auth(subject_identifier: string): get_group_membership~ get_subject_information_from_identifier~
auth(subject_name: string): get_subject_identifier~
Bond(network: ref network, members: set ref PIF, MAC: string, mode: bond_mode = "balance-slb",
    properties: map string string = {}): create
Bond(self: ref Bond): destroy
Bond(self: ref Bond, value: bond_mode): set_mode
Bond(self: ref Bond, name: string, value: string): set_property
Caller(self: ref Caller, group: string): add_group* remove_group*
Caller(args: record Caller): create*
Caller(self: ref Caller): destroy* query_call_count* query_token_usage*
Caller(): query_all_usage*
Caller(group: string): query_group_call_count* query_group_token_usage*
Cluster(PIF: ref PIF, cluster_stack: string, pool_auto_join: bool, token_timeout: float = 20.0,
    token_timeout_coefficient: float = 1.0): create
Cluster(self: ref Cluster): cstack_sync*! destroy get_network pool_destroy pool_force_destroy
    pool_resync
Cluster(network: ref network, cluster_stack: string, token_timeout: float = 20.0,
    token_timeout_coefficient: float = 1.0): pool_create
Cluster_host(cluster: ref Cluster, host: ref host, pif: ref PIF): create
Cluster_host(self: ref Cluster_host): destroy disable enable force_destroy forget
console(args: record console): create
console(self: ref console): destroy
Diagnostics(): db_stats
Diagnostics(host: ref host): gc_compact gc_stats
Diagnostics(host: ref host, params: map string string): network_stats
DR_task(type: string, device_config: map string string, whitelist: set string): create
DR_task(self: ref DR_task): destroy
Driver_variant(self: ref Driver_variant): select*
GPU_group(name_label: string = "", name_description: string = "", other_config: map string
    string = {}): create
GPU_group(self: ref GPU_group): destroy update_enabled_VGPU_types update_supported_VGPU_types
GPU_group(self: ref GPU_group, vgpu_type: ref VGPU_type): get_remaining_capacity
host(address: string): abort_new_master!~ commit_new_master!~
host(self: ref host, vm: ref VM, live: bool): allocate_resources_for_vm
host(host: ref host, edition: string, force: bool = false): apply_edition~
host(host: ref host): apply_guest_agent_config certificate_list! certificate_sync!
    copy_primary_host_certs! crl_list! disable_binary_storage! disable_display
    disable_local_storage_caching~ dmesg dmesg_clear enable_binary_storage! enable_display
    get_data_sources~ get_log get_sm_diagnostics~ get_system_status_capabilities~
    get_thread_diagnostics~ ha_disable_failover_decisions! ha_disarm_fencing! ha_join_liveset!
    ha_release_resources! ha_stop_daemon! ha_wait_for_shutdown_via_statefile! license_remove
    mxgpu_vf_setup! prepare_for_poweroff refresh_pack_info refresh_server_certificate
    reset_networking reset_server_certificate sync_data~ sync_tunnels!~ sync_vlans!~
    syslog_reconfigure write_uefi_certificates_to_disk!
host(self: ref host, hash: string): apply_updates
host(host: ref host, vdi_reason_map: map ref VDI string): attach_static_vdis!
host(host: ref host, delay: float): backup_rrds~
host(host: ref host, url: string, options: map string string): bugreport_upload
host(host: ref host, call: string): call_extension~
host(host: ref host, command: string): cert_distrib_atom!
host(host: ref host, old_ps: string, new_ps: string): cleanup_pool_secret
    notify_accept_new_pool_secret notify_send_new_pool_secret
host(uuid: string, name_label: string, name_description: string, hostname: string, address:
    string, external_auth_type: string = ""): create
host(host: ref host, name: string, mime_type: string, public: bool = false): create_new_blob
host(host: ref host, name: string, crl: string): crl_install!
host(host: ref host, name: string): crl_uninstall! has_extension
host(host: ref host, vdis: set ref VDI): detach_static_vdis!
host(host: ref host, config: map string string = {}, force: bool = false):
    disable_external_auth~
host(self: ref host): disable_ssh* enable_ssh* get_ntp_servers_status* get_ntp_synchronized*
    get_sched_gran get_tracked_user_agents* get_uncooperative_domains!
    get_uncooperative_resident_VMs list_timezones* rescan_drivers*
    retrieve_wlb_evacuate_recommendations
host(): emergency_clear_mandatory_guidance~ emergency_disable_tls_verification~
    emergency_reenable_tls_verification~ emergency_reset_server_certificate~
    ha_xapi_healthcheck~ local_assert_healthy!~ management_disable~ shutdown_agent~
    signal_networking_change!~ update_firewalld_service_status*!~
host(soft: bool = false): emergency_ha_disable~
host(host: ref host, config: map string string, service_name: string, auth_type: string):
    enable_external_auth~
host(host: ref host, sr: ref SR): enable_local_storage_caching~
host(host: ref host, ldaps: bool, force: bool = false): external_auth_set_ldaps*~
host(host: ref host, data_source: string): forget_data_source_archives~ query_data_source~
    record_data_source~
host(host: ref host, counts: bool = false): get_diagnostic_timing_stats~
host(host: ref host, name: string, cert: string): install_ca_certificate!
host(host: ref host, certificate: string, private_key: string, certificate_chain: string = ""):
    install_server_certificate
host(host: ref host, contents: string): license_add
host(interface: string): local_management_reconfigure~
host(pif: ref PIF): management_reconfigure
host(ty: string, params: string): notify!
host(host: ref host, pf: ref PCI, enable: bool): nvidia_vf_setup!
host(host: ref host, statefiles: set ref VDI, metadata_vdi: ref VDI, generation: string):
    preconfigure_ha!
host(address: string, manual: bool): propose_new_master!~
host(host: ref host, generation: int, force: bool): request_backup!~
host(host: ref host, hash: string): request_config_file_sync!~
host(host: ref host, keys: string): send_debug_keys
host(self: ref host, value: int): set_console_idle_timeout* set_ssh_enabled_timeout*
host(host: ref host, hostname: string): set_hostname_live~
host(host: ref host, value: string): set_iscsi_iqn set_uefi_certificates
host(self: ref host, value: map string string): set_license_params!
host(host: ref host, key: string, value: string): set_localdb_key!
host(self: ref host, value: string): set_max_cstate* set_timezone*
host(host: ref host, value: bool): set_multipathing
host(self: ref host, value: set string): set_ntp_custom_servers*
host(self: ref host, value: host_ntp_mode): set_ntp_mode*
host(self: ref host, value: numa_policy): set_numa_affinity_policy
host(self: ref host, power_on_mode: string, power_on_config: map string string):
    set_power_on_mode
host(self: ref host, value: host_sched_gran): set_sched_gran
host(self: ref host, value: datetime): set_servertime*
host(self: ref host, value: bool): set_ssh_auto_mode* set_ssl_legacy
host(host: ref host, dp: string, allow_leak: bool): sm_dp_destroy~
host(host: ref host, bridges: set string): sync_pif_currently_attached!~
host(host: ref host, stuff: map string string): tickle_heartbeat!~
host(host: ref host, name: string, force: bool = false): uninstall_ca_certificate!
host(host: ref host, master_address: string): update_master!
host(host: ref host, pool_secret: string): update_pool_secret!
host_crashdump(self: ref host_crashdump, url: string, options: map string string): upload
Host_driver(self: ref Host_driver): deselect*
Host_driver(host: ref host): rescan*
Host_driver(self: ref Host_driver, variant: ref Driver_variant): select*
host_patch(self: ref host_patch): apply destroy
LVHD(host: ref host, SR: ref SR, initial_allocation: int, allocation_quantum: int):
    enable_thin_provisioning
message(filters: map string string): destroy_all*
network(network: ref network, host: ref host): attach
network(host: ref host, vm: ref VM): attach_for_vm detach_for_vm
network(network: ref network, name: string, mime_type: string, public: bool = false):
    create_new_blob
network(name_label: string, name_description: string, MTU: int, other_config: map string string,
    bridge: string, managed: bool, purpose: set network_purpose): pool_introduce
network_sriov(pif: ref PIF, network: ref network): create
network_sriov(self: ref network_sriov): destroy get_remaining_capacity
Observer(self: ref Observer, host: ref host): register unregister
Observer(self: ref Observer, value: map string string): set_attributes
Observer(self: ref Observer, value: set string): set_components set_endpoints
Observer(self: ref Observer, value: bool): set_enabled
Observer(self: ref Observer, value: set ref host): set_hosts
PCI(self: ref PCI): disable_dom0_access enable_dom0_access get_dom0_access_status
PGPU(self: ref PGPU, value: ref VGPU_type): add_enabled_VGPU_types remove_enabled_VGPU_types
PGPU(self: ref PGPU): disable_dom0_access enable_dom0_access
PGPU(self: ref PGPU, vgpu_type: ref VGPU_type): get_remaining_capacity
PGPU(self: ref PGPU, value: set ref VGPU_type): set_enabled_VGPU_types
PGPU(self: ref PGPU, value: ref GPU_group): set_GPU_group
PIF(device: string, network: ref network, host: ref host, VLAN: int): create_VLAN
PIF(self: ref PIF): db_forget destroy forget plug unplug
PIF(device: string, network: ref network, host: ref host, MAC: string, MTU: int, VLAN: int,
    physical: bool, ip_configuration_mode: ip_mode, IP: string, netmask: string, gateway:
    string, DNS: string, bond_slave_of: ref Bond, VLAN_master_of: ref VLAN, management: bool,
    other_config: map string string, disallow_unplug: bool = false, ipv6_configuration_mode:
    ipv6_mode = "None", IPv6: set string = [], ipv6_gateway: string = "", primary_address_type:
    address_type = "IPv4", managed: bool = true, properties: map string string = {}):
    db_introduce pool_introduce
PIF(host: ref host, MAC: string, device: string, managed: bool = true): introduce
PIF(self: ref PIF, mode: ip_mode, IP: string, netmask: string, gateway: string, DNS: string):
    reconfigure_ip
PIF(self: ref PIF, mode: ipv6_mode, IPv6: string, gateway: string, DNS: string):
    reconfigure_ipv6
PIF(host: ref host): scan
PIF(self: ref PIF, value: bool): set_disallow_unplug
PIF(self: ref PIF, primary_address_type: address_type): set_primary_address_type
PIF(self: ref PIF, name: string, value: string): set_property
pool(self: ref pool, value: ref Repository): add_repository remove_repository
pool(self: ref pool, key: string, value: string): add_to_guest_agent_config
pool(self: ref pool, edition: string): apply_edition
pool(line: string): audit_log_append!
pool(name: string, cert: string): certificate_install crl_install install_ca_certificate
pool(): certificate_list certificate_sync crl_list deconfigure_wlb disable_binary_storage
    disable_redo_log enable_binary_storage enable_tls_verification~
    ha_compute_max_host_failures_to_tolerate~ ha_schedule_plan_recomputation! initial_auth
    retrieve_wlb_configuration retrieve_wlb_recommendations rotate_secret
pool(name: string): certificate_uninstall crl_uninstall
pool(self: ref pool, requires_reboot: bool): check_update_readiness
pool(self: ref pool, url: string, username: string, password: string):
    configure_repository_proxy
pool(self: ref pool, update_sync_frequency: update_sync_frequency, update_sync_day: int):
    configure_update_sync
pool(pool: ref pool, name: string, mime_type: string, public: bool = false): create_new_blob
pool(device: string, network: ref network, VLAN: int): create_VLAN
pool(pif: ref PIF, network: ref network, VLAN: int): create_VLAN_from_PIF
pool(pool: ref pool): detect_nonhomogeneous_external_auth~
pool(self: ref pool): disable_client_certificate_auth disable_local_storage_caching
    disable_repository_proxy disable_ssh* disable_ssl_legacy enable_local_storage_caching
    enable_ssh* get_license_state reset_telemetry_uuid
pool(pool: ref pool, config: map string string = {}): disable_external_auth~
pool(host: ref host): eject
pool(self: ref pool, name: string): enable_client_certificate_auth has_extension
pool(pool: ref pool, config: map string string, service_name: string, auth_type: string):
    enable_external_auth~
pool(sr: ref SR): enable_redo_log
pool(import: map string string, export: set ref Certificate): exchange_ca_certificates_on_join
pool(uuid: string, certificate: string): exchange_certificates_on_join
pool(self: ref pool, import: map string string, export: set string): exchange_crls_on_join*
pool(self: ref pool, ca: bool, import: map string set string, export: set ref Certificate):
    exchange_trusted_certificates_on_join*
pool(pool: ref pool, ldaps: bool, force: bool = false): external_auth_set_ldaps*~
pool(configuration: map ref VM string): ha_compute_hypothetical_max_host_failures_to_tolerate~
pool(failed_hosts: set ref host, failed_vms: set ref VM): ha_compute_vm_failover_plan~
pool(n: int): ha_failover_plan_exists~
pool(seconds: int): ha_prevent_restarts_for~
pool(host_uuid: string, host_address: string): hello
pool(wlb_url: string, wlb_username: string, wlb_password: string, xenserver_username: string,
    xenserver_password: string): initialize_wlb
pool(self: ref pool, ca: bool, cert: string, purpose: set certificate_purpose):
    install_trusted_certificate*
pool(master_address: string, master_username: string, master_password: string): join join_force
pool(network: ref network): management_reconfigure
pool(self: ref pool, key: string): remove_from_guest_agent_config
pool(host: string, port: int, body: string): send_test_post
pool(config: map string string): send_wlb_configuration
pool(self: ref pool, value: int): set_console_idle_timeout* set_ext_auth_cache_expiry*
    set_ext_auth_cache_size* set_ext_auth_max_threads~ set_local_auth_max_threads~
    set_ssh_enabled_timeout*
pool(self: ref pool, value: string): set_custom_uefi_certificates set_uefi_certificates
pool(self: ref pool, value: bool): set_ext_auth_cache_enabled* set_igmp_snooping_enabled
    set_ssh_auto_mode* set_update_sync_enabled
pool(self: ref pool, value: set ref Repository): set_repositories
pool(self: ref pool, value: datetime): set_telemetry_next_collection
pool(address: string): set_vswitch_controller
pool(self: ref pool, remote_pool: string, remote_session: ref session, remote_certificate:
    string, ca: bool): sync_trusted_certificates_from*
pool(self: ref pool, force: bool, token: string = "", token_id: string = "", username: string =
    "", password: string = ""): sync_updates
pool(self: ref pool, config: map string string): test_archive_target~
pool(name: string, force: bool = false): uninstall_ca_certificate
pool(self: ref pool, certificate: ref Certificate): uninstall_trusted_certificate*
pool_patch(self: ref pool_patch, host: ref host): apply clean_on_host precheck
pool_patch(self: ref pool_patch): clean pool_apply pool_clean
pool_update(self: ref pool_update, host: ref host): apply precheck
pool_update(self: ref pool_update, use_localhost_proxy: bool = false): attach
pool_update(self: ref pool_update): destroy detach pool_apply pool_clean
pool_update(vdi: ref VDI): introduce
pool_update(host: ref host): resync_host
PUSB(host: ref host): scan
PUSB(self: ref PUSB, value: bool): set_passthrough_enabled
PVS_proxy(site: ref PVS_site, VIF: ref VIF): create
PVS_proxy(self: ref PVS_proxy): destroy
PVS_server(self: ref PVS_server): forget
PVS_server(addresses: set string, first_port: int, last_port: int, site: ref PVS_site):
    introduce
PVS_site(self: ref PVS_site): forget
PVS_site(name_label: string, name_description: string, PVS_uuid: string): introduce
PVS_site(self: ref PVS_site, value: string): set_PVS_uuid
Rate_limit(self: ref Rate_limit, caller: ref Caller): add_caller* remove_caller*
Rate_limit(args: record Rate_limit): create*
Rate_limit(self: ref Rate_limit): destroy*
Rate_limit(self: ref Rate_limit, value: float): set_burst_size* set_fill_rate*
Repository(host: ref host): apply!
Repository(host: ref host, component: string, base_build_id: string, base_version: string,
    base_release: string, to_version: string, to_release: string): apply_livepatch!
Repository(self: ref Repository): forget
Repository(name_label: string, name_description: string, binary_url: string, source_url: string,
    update: bool, gpgkey_path: string = ""): introduce
Repository(name_label: string, name_description: string): introduce_bundle*
Repository(name_label: string, name_description: string, binary_url: string, certificate:
    string): introduce_remote_pool*
Repository(self: ref Repository, value: string): set_gpgkey_path
SDN_controller(self: ref SDN_controller): forget
SDN_controller(protocol: sdn_controller_protocol = "ssl", address: string = "", port: int = 0):
    introduce
secret(uuid: string, value: string, other_config: map string string = {}): introduce~
session(filename: string): create_from_db_file
SR(sr: ref SR): assert_can_host_ha_statefile assert_supports_database_replication
    disable_database_replication enable_database_replication get_data_sources~
SR(sr: ref SR, name: string, mime_type: string, public: bool = false): create_new_blob
SR(sr: ref SR, data_source: string): forget_data_source_archives~ query_data_source~
    record_data_source~
SR(host: ref host, device_config: map string string, type: string, sm_config: map string string
    = {}): probe probe_ext
SR(self: ref SR, value: int): set_physical_size~ set_physical_utilisation~
    set_virtual_allocation~
tunnel(transport_PIF: ref PIF, network: ref network, protocol: tunnel_protocol = "gre"): create
tunnel(self: ref tunnel): destroy
USB_group(name_label: string = "", name_description: string = "", other_config: map string
    string = {}): create
USB_group(self: ref USB_group): destroy
VBD(self: ref VBD): pause unplug_force_no_safety_check
VBD(self: ref VBD, token: string = ""): unpause
VDI(self: ref VDI): checksum open_database read_database_pool_uuid
VDI(vdi: ref VDI): db_forget
VDI(uuid: string, name_label: string, name_description: string, SR: ref SR, type: vdi_type,
    sharable: bool, read_only: bool, other_config: map string string, location: string,
    xenstore_data: map string string = {}, sm_config: map string string = {}, managed: bool =
    true, virtual_size: int = 0, physical_utilisation: int = 0, metadata_of_pool: ref pool = "",
    is_a_snapshot: bool = false, snapshot_time: datetime = "19700101T00:00:00Z", snapshot_of:
    ref VDI = "", cbt_enabled: bool = false): db_introduce pool_introduce
VDI(host: ref host, vdi: ref VDI): generate_config
VGPU(self: ref VGPU, value: ref PGPU): atomic_set_resident_on!
VGPU(VM: ref VM, GPU_group: ref GPU_group, device: string = "0", other_config: map string string
    = {}, type: ref VGPU_type = "OpaqueRef:NULL"): create
VGPU(self: ref VGPU): destroy
VIF(self: ref VIF, value: int): add_trunks* remove_trunks*
VIF(self: ref VIF, value: set int): set_trunks*
VLAN(tagged_PIF: ref PIF, tag: int, network: ref network): create
VLAN(self: ref VLAN): destroy
VLAN(tagged_PIF: ref PIF, untagged_PIF: ref PIF, tag: int, other_config: map string string):
    pool_introduce
VM(self: ref VM, session_to: ref session): assert_can_be_recovered get_SRs_required_for_recovery
VM(vm: ref VM, dest: map string string, live: bool, vdi_map: map ref VDI ref SR, vif_map: map
    ref VIF ref network, vgpu_map: map ref VGPU ref GPU_group, options: map string string):
    assert_can_migrate_sender
VM(vm: ref VM, host: ref host): atomic_set_resident_on! pool_migrate_complete
VM(vm: ref VM, plugin: string, fn: string, args: map string string): call_host_plugin*
VM(vm: ref VM, name: string, mime_type: string, public: bool = false): create_new_blob
VM(vm: ref VM): csvm hard_reboot_internal! retrieve_wlb_recommendations s3_resume s3_suspend
VM(self: ref VM, data_source: string): forget_data_source_archives~ query_data_source~
    record_data_source~
VM(type: string, username: string, password: string, sr: ref SR, remote_config: map string
    string): import_convert
VM(self: ref VM, session_to: ref session, force: bool): recover
VM(self: ref VM): restart_device_models wait_memory_target_live
VM(self: ref VM, target: int): set_memory_target_live
VM(self: ref VM, value: string, update: update_status = "unspecified"): set_NVRAM_EFI_variables~
VM(self: ref VM, mode: vm_uefi_mode): set_uefi_mode
VM(self: ref VM, unattend: string, timeout: float): sysprep*
VM(self: ref VM, mark: bool): update_secureboot_certificates_on_boot*
VM(vm: ref VM, snapshot_of: ref VM, snapshot_time: datetime, transportable_snapshot_id: string):
    update_snapshot_metadata
VM_appliance(self: ref VM_appliance, session_to: ref session): assert_can_be_recovered
    get_SRs_required_for_recovery
VM_appliance(self: ref VM_appliance, session_to: ref session, force: bool): recover
VMSS(self: ref VMSS, key: string, value: string): add_to_schedule~
VMSS(self: ref VMSS, key: string): remove_from_schedule~
VMSS(self: ref VMSS, value: vmss_frequency): set_frequency~
VMSS(self: ref VMSS, value: datetime): set_last_run_time~
VMSS(self: ref VMSS, value: int): set_retained_snapshots~
VMSS(self: ref VMSS, value: map string string): set_schedule~
VMSS(self: ref VMSS, value: vmss_type): set_type~
VMSS(vmss: ref VMSS): snapshot_now~
VUSB(VM: ref VM, USB_group: ref USB_group, other_config: map string string = {}): create
VUSB(self: ref VUSB): destroy unplug
"""
_LINE = re.compile(r"(?P<cls>\w+)\((?P<parameters>[^)]*)\): (?P<names>[^()]+)")
_NAME = re.compile(r"(?P<name>\w+)(?P<marks>[*!~]*)")


def register_unsimulated() -> None:
    """Declare them all.

    Raises:
        ValueError: one of them is simulated, and its line is left over.
    """
    for method in _read():
        if method.name in METHODS:
            raise ValueError(f"{method.name} has a handler; remove it from classes/unsimulated.py")
        register(method)


def is_simulated(method: Method) -> bool:
    """Tell whether a call does something here."""
    return method.handler.__module__ != __name__


def unsimulated() -> Iterator[Method]:
    """Yield the calls that are known and do nothing."""
    for name, method in METHODS.items():
        if name == method.name and not is_simulated(method):
            yield method


def _read() -> Iterator[Method]:
    for line in re.split(r"\n(?! )", _CALLS.strip()):
        found = _LINE.fullmatch(" ".join(line.split()))
        if found is None:
            raise ValueError(f"cannot read {line!r}")
        parameters = read_parameters(found["parameters"])
        for name, marks in _NAME.findall(found["names"]):
            asynchronous = "~" not in marks
            yield Method(
                f"{found['cls']}.{name}",
                parameters,
                _refusal(f"{found['cls']}.{name}", parameters, internal="!" in marks),
                asynchronous,
                tracked=asynchronous,
                newer="*" in marks,
            )


def _refusal(name: str, parameters: tuple[Parameter, ...], internal: bool) -> Any:
    def refuse(call: Call, *arguments: Any) -> None:
        if internal:
            raise internal_error(
                f'Internal API "{name}" call attempted with non-pool (external) session'
            )
        for parameter, value in zip(parameters, arguments, strict=True):
            if parameter.type.kind == "ref" and parameter.mandatory and value != NULL:
                call.pool.db.row(parameter.type.name, value)
        raise not_simulated(name)

    return refuse
