"""All methods of the lab: importing this module declares them.

Handlers of single classes win over the implicit messages of the data model.
"""

from xorepd.lab.classes import event as event
from xorepd.lab.classes import host as host
from xorepd.lab.classes import session as session
from xorepd.lab.classes import sr as sr
from xorepd.lab.classes import task as task
from xorepd.lab.classes import vbd as vbd
from xorepd.lab.classes import vdi as vdi
from xorepd.lab.classes import vif as vif
from xorepd.lab.classes import vm as vm
from xorepd.lab.classes import vm_power as vm_power
from xorepd.lab.classes import vm_snapshot as vm_snapshot
from xorepd.lab.generics import register_generics

register_generics()
