"""The command `qorb demo`: a pool over real sockets, and what it does on a bad day.

| module | |
|---|---|
| command | the options, and which view shows it |
| demo | the run, from the first server to the last count |
| servers | echo servers that can be killed, revived, hung and healed |
| dns | the DNS server in whose zone the pool finds them |
| connector | how the pool opens and checks a connection to one |
| clients | they claim, send a line, and compare what comes back |
| scenario | what happens when, and what to look at: a table |
| frame | what there is to show at one moment, worked out from Pool.stats() |
| journal | what was said, in order: steps, the pool's events, log records |
| statistics | where the pools can be looked at with a browser or `qorb top` |
| interruption | Ctrl-C and the like, as something to wait for |
| report, process | what is left at the end, by several accounts |
| plain, _rich | the two views |
| postgres | PostgreSQL servers that can be killed, frozen, promoted and demoted |
| failover | `qorb demo --postgres`: two pools over a cluster of them |
"""
