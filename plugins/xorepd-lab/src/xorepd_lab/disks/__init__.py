"""The disks behind SRs: VHD files, chains, changed-block logs, kinds of SR, garbage collection."""
