"""From a VM on one pool to its replica on another. The rooms, from the top:

    run        a job's VMs, and the steps of one VM, in their order
    cleanup    what runs leave behind: sweep, prune, forget
    target     commit: the staging disks become a restore point of the replica
    transfer   the data of each disk, into staging disks
    source     the snapshot that a run reads
    removal    destroys what is proven to be ours
    context    what a run works with: its pools and locks, its places, its progress
    deciding   what to do, from records and policy. Pure
    format     what stands on the pools, and what it proves. Pure

Imports point down this list; `make lint` checks that.
"""
