"""A watcher as a monitoring script has it: watch.py URL USER PASSWORD.

It prints what happens to VMs, one JSON line each, whatever becomes of the session meanwhile, until
a VM is described as "stop watching".
"""

import http.client
import json
import sys
import time
import xmlrpc.client
from typing import Any

import XenAPI


def tell(**what: Any) -> None:
    json.dump(what, sys.stdout)
    sys.stdout.write("\n")
    sys.stdout.flush()


def watch(session: Any, names: dict[str, str]) -> None:
    """Tell of changes until it is time to stop."""
    first = True
    token = ""
    while True:
        batch = getattr(session.xenapi.event, "from")(["vm"], token, 30.0)
        token = batch["token"]
        for event in batch["events"]:
            if event["operation"] == "del":
                tell(gone=names.pop(event["ref"], "?"))
                continue
            vm = event["snapshot"]
            names[event["ref"]] = vm["name_label"]
            if vm["name_description"] == "stop watching":
                return
            if not first:
                tell(vm=vm["name_label"], state=vm["power_state"], does=vm["current_operations"])
        if first:
            tell(watching=len(names))
            first = False


def main(url: str, user: str, password: str) -> None:
    names: dict[str, str] = {}
    while True:
        session = XenAPI.Session(url)
        try:
            session.login_with_password(user, password, "1.0", "watch")
            watch(session, names)
        except (XenAPI.Failure, OSError, http.client.HTTPException, xmlrpc.client.Error) as error:
            tell(lost=type(error).__name__)
            time.sleep(0.1)  # noqa: TID251 - as strangers wait
        else:
            session.logout()
            return


if __name__ == "__main__":
    main(*sys.argv[1:])
