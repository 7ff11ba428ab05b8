"""All methods of the lab: importing this module declares them.

Handlers of single classes win over the implicit messages of the data model, and both over what is
known and not simulated.
"""

from xorepd_lab.calls.generics import register_generics
from xorepd_lab.classes import bystander as bystander
from xorepd_lab.classes import event as event
from xorepd_lab.classes import message as message
from xorepd_lab.classes import role as role
from xorepd_lab.classes import session as session
from xorepd_lab.classes import subject as subject
from xorepd_lab.classes import task as task
from xorepd_lab.classes.devices import network as network
from xorepd_lab.classes.devices import vbd as vbd
from xorepd_lab.classes.devices import vif as vif
from xorepd_lab.classes.devices import vtpm as vtpm
from xorepd_lab.classes.hosts import host as host
from xorepd_lab.classes.hosts import pool as pool
from xorepd_lab.classes.storage import pbd as pbd
from xorepd_lab.classes.storage import sr as sr
from xorepd_lab.classes.storage import vdi as vdi
from xorepd_lab.classes.storage import vdi_cbt as vdi_cbt
from xorepd_lab.classes.storage import vdi_copy as vdi_copy
from xorepd_lab.classes.storage import vdi_fields as vdi_fields
from xorepd_lab.classes.storage import vdi_nbd as vdi_nbd
from xorepd_lab.classes.unsimulated import register_unsimulated
from xorepd_lab.classes.vm import appliance as appliance
from xorepd_lab.classes.vm import memory as memory
from xorepd_lab.classes.vm import migrate as migrate
from xorepd_lab.classes.vm import power as power
from xorepd_lab.classes.vm import provision as provision
from xorepd_lab.classes.vm import questions as questions
from xorepd_lab.classes.vm import records as records
from xorepd_lab.classes.vm import revert as revert
from xorepd_lab.classes.vm import settings as settings
from xorepd_lab.classes.vm import snapshot as snapshot
from xorepd_lab.classes.vm import storage_migrate as storage_migrate
from xorepd_lab.classes.vm import suspend as suspend
from xorepd_lab.front import xva_import as xva_import

register_generics()
register_unsimulated()
