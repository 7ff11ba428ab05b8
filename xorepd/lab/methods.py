"""All methods of the lab: importing this module declares them.

Handlers of single classes win over the implicit messages of the data model, and both over what is
known and not simulated.
"""

from xorepd.lab.classes import bystander as bystander
from xorepd.lab.classes import event as event
from xorepd.lab.classes import host as host
from xorepd.lab.classes import message as message
from xorepd.lab.classes import network as network
from xorepd.lab.classes import pbd as pbd
from xorepd.lab.classes import pool as pool
from xorepd.lab.classes import role as role
from xorepd.lab.classes import session as session
from xorepd.lab.classes import sr as sr
from xorepd.lab.classes import storage_migrate as storage_migrate
from xorepd.lab.classes import subject as subject
from xorepd.lab.classes import task as task
from xorepd.lab.classes import vbd as vbd
from xorepd.lab.classes import vdi as vdi
from xorepd.lab.classes import vdi_cbt as vdi_cbt
from xorepd.lab.classes import vdi_copy as vdi_copy
from xorepd.lab.classes import vdi_fields as vdi_fields
from xorepd.lab.classes import vdi_nbd as vdi_nbd
from xorepd.lab.classes import vif as vif
from xorepd.lab.classes import vm as vm
from xorepd.lab.classes import vm_appliance as vm_appliance
from xorepd.lab.classes import vm_import as vm_import
from xorepd.lab.classes import vm_memory as vm_memory
from xorepd.lab.classes import vm_migrate as vm_migrate
from xorepd.lab.classes import vm_power as vm_power
from xorepd.lab.classes import vm_provision as vm_provision
from xorepd.lab.classes import vm_questions as vm_questions
from xorepd.lab.classes import vm_revert as vm_revert
from xorepd.lab.classes import vm_settings as vm_settings
from xorepd.lab.classes import vm_snapshot as vm_snapshot
from xorepd.lab.classes import vm_suspend as vm_suspend
from xorepd.lab.classes import vtpm as vtpm
from xorepd.lab.generics import register_generics
from xorepd.lab.unsimulated import register_unsimulated

register_generics()
register_unsimulated()
