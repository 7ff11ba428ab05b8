"""Everything that XAPI's HTTP server answers to: a name, a method, the beginning of a path, a role.

The name is what a 401 calls its realm and what the permission is called, `http/get_export_raw_vdi`.
The longest path that a request begins with decides. So GETs without a handler of their own are for
the website, and POSTs are calls. What is public looks at credentials itself, or needs none.

Source: xapi: ocaml/idl/datamodel.ml (http_actions, public_http_actions_with_no_rbac_check),
ocaml/xapi-consts/constants.ml, ocaml/xapi/xapi.ml (common_http_handlers).
"""

from typing import NamedTuple

from xorepd_lab.model.schema import words


class HttpAction(NamedTuple):
    name: str
    method: str
    path: str
    role: str
    """The least that may come in."""

    @property
    def public(self) -> bool:
        """Whether it is open to those without a session, too."""
        return self.name in _PUBLIC


_PUBLIC = words(
    "get_root post_root post_root_options post_RPC2 post_json post_json_options post_jsonrpc"
    " post_jsonrpc_options post_cli get_blob get_pool_update_download"
)


ACTIONS = [
    HttpAction(*line.split())
    for line in """
get_root                 GET     /                     read-only
post_root                POST    /                     read-only
post_root_options        OPTIONS /                     read-only
post_RPC2                POST    /RPC2                 read-only
post_json                POST    /json                 read-only
post_json_options        OPTIONS /json                 read-only
post_jsonrpc             POST    /jsonrpc              read-only
post_jsonrpc_options     OPTIONS /jsonrpc              read-only
post_cli                 POST    /cli                  read-only
get_services             GET     /services             read-only
post_services            POST    /services             pool-admin
put_services             PUT     /services             pool-admin
get_services_xenops      GET     /services/xenops      vm-power-admin
post_services_xenops     POST    /services/xenops      vm-power-admin
put_services_xenops      PUT     /services/xenops      vm-power-admin
get_services_sm          GET     /services/SM          vm-power-admin
post_services_sm         POST    /services/SM          vm-power-admin
put_services_sm          PUT     /services/SM          vm-power-admin
put_import               PUT     /import               vm-admin
put_import_metadata      PUT     /import_metadata      vm-admin
put_import_raw_vdi       PUT     /import_raw_vdi       vm-admin
get_export               GET     /export               vm-admin
get_export_metadata      GET     /export_metadata      vm-admin
get_export_raw_vdi       GET     /export_raw_vdi       vm-admin
connect_console          CONNECT /console              vm-operator
connect_console_ws       GET     /console              vm-operator
connect_remotecmd        CONNECT /remotecmd            pool-admin
get_host_backup          GET     /host_backup          pool-admin
put_host_restore         PUT     /host_restore         pool-admin
get_host_logs_download   GET     /host_logs_download   pool-operator
put_pool_patch_upload    PUT     /pool_patch_upload    pool-operator
get_vncsnapshot          GET     /vncsnapshot          vm-operator
get_pool_xml_db_sync     GET     /pool/xmldbdump       pool-admin
put_pool_xml_db_sync     PUT     /pool/xmldbdump       pool-admin
get_config_sync          GET     /sync_config_files    pool-admin
get_system_status        GET     /system-status        pool-operator
vm_rrd                   GET     /vm_rrd               read-only
get_vm_rrds              GET     /vm_rrds              read-only
host_rrd                 GET     /host_rrd             read-only
get_host_rrds            GET     /host_rrds            read-only
sr_rrd                   GET     /sr_rrd               read-only
rrd_updates              GET     /rrd_updates          read-only
rrd                      PUT     /rrd                  pool-admin
get_blob                 GET     /blob                 read-only
put_blob                 PUT     /blob                 vm-power-admin
put_messages             PUT     /messages             vm-power-admin
get_wlb_report           GET     /wlb_report           read-only
get_wlb_diagnostics      GET     /wlb_diagnostics      read-only
get_audit_log            GET     /audit_log            read-only
get_pool_update_download GET     /update/              read-only
get_host_updates         GET     /host_updates         pool-operator
get_updates              GET     /updates              pool-operator
""".strip().splitlines()
]
"""Left out are those that hosts of a pool use among themselves."""

HTTP_ROLES = {each.name: each.role for each in ACTIONS}


def find_action(method: str, path: str) -> HttpAction | None:
    """Return what a request is for; None where XAPI has nothing: some PUTs and CONNECTs."""
    fitting = [each for each in ACTIONS if each.method == method and path.startswith(each.path)]
    return max(fitting, key=lambda each: len(each.path), default=None)
