"""What holds on any pool. The same bodies run against the lab, and against a real pool if given:

XOREPD_TEST_POOL_URL            https://xcp.example.com, the pool master
XOREPD_TEST_POOL_USER           default: root
XOREPD_TEST_POOL_PASSWORD_FILE  a file that holds the password
XOREPD_TEST_POOL_SR             name or UUID of an SR of VHD disks with a few GiB free
XOREPD_TEST_POOL_NETWORK        name or UUID of any network; default: the first one

Objects that they make are called "xorepd-test …" and are removed at the end of each test; nothing
else is changed on the pool. Certificates are not verified.
"""
