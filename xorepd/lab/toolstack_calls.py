"""The calls of XAPI's data model beyond those that follow from the fields of its classes.

Here or not: from this list `coverage` tells what the lab does not know. Left out are calls that
XAPI itself has removed.

Source: xapi: doc/data/xenapi.json (May 2024; what is neither implicit nor removed, and the implicit
`create` and `destroy`).
"""

from collections import defaultdict

_LINES = """
auth: get_group_membership get_subject_identifier get_subject_information_from_identifier
blob: create destroy
Bond: create destroy set_mode set_property
Cluster: create destroy get_network pool_create pool_destroy pool_force_destroy pool_resync
Cluster_host: create destroy disable enable force_destroy
console: create destroy
crashdump: destroy
DR_task: create destroy
event: from get_current_id inject next register unregister
GPU_group: create destroy get_remaining_capacity
host: apply_edition apply_updates assert_can_evacuate backup_rrds bugreport_upload call_extension
host: call_plugin compute_free_memory compute_memory_overhead create_new_blob declare_dead destroy
host: disable disable_display disable_external_auth disable_local_storage_caching dmesg dmesg_clear
host: emergency_clear_mandatory_guidance emergency_disable_tls_verification emergency_ha_disable
host: emergency_reenable_tls_verification emergency_reset_server_certificate enable enable_display
host: enable_external_auth enable_local_storage_caching evacuate forget_data_source_archives
host: get_data_sources get_log get_management_interface get_sched_gran get_server_certificate
host: get_server_localtime get_servertime get_system_status_capabilities
host: get_uncooperative_resident_VMs get_vms_which_prevent_evacuation has_extension
host: install_server_certificate license_add license_remove list_methods
host: local_management_reconfigure management_disable management_reconfigure migrate_receive
host: power_on query_data_source reboot record_data_source refresh_pack_info
host: refresh_server_certificate reset_server_certificate restart_agent
host: retrieve_wlb_evacuate_recommendations send_debug_keys set_hostname_live set_https_only
host: set_iscsi_iqn set_multipathing set_numa_affinity_policy set_power_on_mode set_sched_gran
host: set_ssl_legacy set_uefi_certificates shutdown shutdown_agent sync_data syslog_reconfigure
host_crashdump: destroy upload
host_patch: apply destroy
LVHD: enable_thin_provisioning
message: create destroy destroy_many get get_all get_all_records get_all_records_where get_by_uuid
message: get_record get_since
network: add_purpose create create_new_blob destroy remove_purpose set_default_locking_mode
network_sriov: create destroy get_remaining_capacity
Observer: create destroy set_attributes set_components set_enabled set_endpoints set_hosts
PBD: create destroy plug set_device_config unplug
PGPU: add_enabled_VGPU_types disable_dom0_access enable_dom0_access get_remaining_capacity
PGPU: remove_enabled_VGPU_types set_enabled_VGPU_types set_GPU_group
PIF: create_VLAN db_forget db_introduce destroy forget introduce plug reconfigure_ip
PIF: reconfigure_ipv6 scan set_disallow_unplug set_primary_address_type set_property unplug
pool: add_repository add_to_guest_agent_config apply_edition certificate_install certificate_list
pool: certificate_sync certificate_uninstall check_update_readiness configure_repository_proxy
pool: configure_update_sync create_new_blob create_VLAN create_VLAN_from_PIF crl_install crl_list
pool: crl_uninstall deconfigure_wlb designate_new_master detect_nonhomogeneous_external_auth
pool: disable_client_certificate_auth disable_external_auth disable_ha disable_local_storage_caching
pool: disable_redo_log disable_repository_proxy disable_ssl_legacy eject emergency_reset_master
pool: emergency_transition_to_master enable_client_certificate_auth enable_external_auth enable_ha
pool: enable_local_storage_caching enable_redo_log enable_tls_verification get_license_state
pool: ha_compute_hypothetical_max_host_failures_to_tolerate ha_compute_max_host_failures_to_tolerate
pool: ha_compute_vm_failover_plan ha_failover_plan_exists ha_prevent_restarts_for has_extension
pool: initialize_wlb install_ca_certificate join join_force management_reconfigure recover_slaves
pool: remove_from_guest_agent_config remove_repository reset_telemetry_uuid
pool: retrieve_wlb_configuration retrieve_wlb_recommendations rotate_secret send_test_post
pool: send_wlb_configuration set_custom_uefi_certificates set_ext_auth_max_threads
pool: set_ha_host_failures_to_tolerate set_https_only set_igmp_snooping_enabled
pool: set_local_auth_max_threads set_repositories set_telemetry_next_collection
pool: set_uefi_certificates set_update_sync_enabled set_vswitch_controller sync_database
pool: sync_updates test_archive_target uninstall_ca_certificate
pool_patch: apply clean clean_on_host destroy pool_apply pool_clean precheck
pool_update: apply destroy introduce pool_apply pool_clean precheck
PUSB: scan set_passthrough_enabled
PVS_cache_storage: create destroy
PVS_proxy: create destroy
PVS_server: forget introduce
PVS_site: forget introduce set_PVS_uuid
Repository: forget introduce set_gpgkey_path
role: get_by_permission get_by_permission_name_label get_permissions get_permissions_name_label
SDN_controller: forget introduce
secret: create destroy
session: change_password create_from_db_file get_all_subject_identifiers local_logout
session: login_with_password logout logout_subject_identifier slave_local_login_with_password
SR: assert_can_host_ha_statefile assert_supports_database_replication create create_new_blob destroy
SR: disable_database_replication enable_database_replication forget forget_data_source_archives
SR: get_data_sources get_supported_types introduce make probe probe_ext query_data_source
SR: record_data_source scan set_name_description set_name_label set_physical_size set_shared update
subject: add_to_roles create destroy get_permissions_name_label remove_from_roles
task: cancel create destroy set_error_info set_progress set_result set_status
tunnel: create destroy
USB_group: create destroy
user: create destroy
VBD: assert_attachable create destroy eject insert plug set_mode unplug unplug_force
VDI: clone copy create data_destroy destroy disable_cbt enable_cbt forget get_nbd_info introduce
VDI: list_changed_blocks open_database pool_migrate read_database_pool_uuid resize set_allow_caching
VDI: set_name_description set_name_label set_on_boot set_read_only set_sharable snapshot update
VGPU: create destroy
VIF: add_ipv4_allowed add_ipv6_allowed configure_ipv4 configure_ipv6 create destroy move plug
VIF: remove_ipv4_allowed remove_ipv6_allowed set_ipv4_allowed set_ipv6_allowed set_locking_mode
VIF: unplug unplug_force
VLAN: create destroy
VM: add_to_NVRAM add_to_VCPUs_params_live assert_agile assert_can_be_recovered assert_can_boot_here
VM: assert_can_migrate assert_operation_valid call_plugin checkpoint clean_reboot clean_shutdown
VM: clone compute_memory_overhead copy copy_bios_strings create create_new_blob destroy
VM: forget_data_source_archives get_allowed_VBD_devices get_allowed_VIF_devices get_boot_record
VM: get_cooperative get_data_sources get_possible_hosts get_SRs_required_for_recovery hard_reboot
VM: hard_shutdown import import_convert maximise_memory migrate_send pause pool_migrate
VM: power_state_reset provision query_data_source query_services record_data_source recover
VM: remove_from_NVRAM restart_device_models resume resume_on retrieve_wlb_recommendations revert
VM: send_sysrq send_trigger set_actions_after_crash set_appliance set_bios_strings set_domain_type
VM: set_ha_always_run set_ha_restart_priority set_has_vendor_device set_HVM_boot_policy
VM: set_HVM_shadow_multiplier set_memory set_memory_dynamic_max set_memory_dynamic_min
VM: set_memory_dynamic_range set_memory_limits set_memory_static_max set_memory_static_min
VM: set_memory_static_range set_memory_target_live set_NVRAM set_order set_shadow_multiplier_live
VM: set_shutdown_delay set_snapshot_schedule set_start_delay set_suspend_VDI set_VCPUs_at_startup
VM: set_VCPUs_max set_VCPUs_number_live shutdown snapshot start start_on suspend unpause
VM: update_allowed_operations wait_memory_target_live
VM_appliance: assert_can_be_recovered clean_shutdown create destroy get_SRs_required_for_recovery
VM_appliance: hard_shutdown recover shutdown start
VMSS: add_to_schedule create destroy remove_from_schedule set_frequency set_last_run_time
VMSS: set_retained_snapshots set_schedule set_type snapshot_now
VTPM: create destroy
VUSB: create destroy unplug
"""


def _parse(lines: str) -> dict[str, set[str]]:
    found: defaultdict[str, set[str]] = defaultdict(set)
    for line in lines.strip().splitlines():
        cls, _, names = line.partition(": ")
        found[cls].update(names.split())
    return dict(found)


CALLS = _parse(_LINES)
"""By class, without the class in front."""
