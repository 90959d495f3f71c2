"""The command `qorb demo --postgres`: two pools over a PostgreSQL cluster whose primary dies.

| module | |
|---|---|
| run | the run, from the first server to the last count |
| stage | a primary and two standbys, the DNS server that names them, and what can be done to them |
| scenario | what happens when, and what to look at: a table |
| _asyncpg | the clients: some write, the others read |
| frame | what there is to show at one moment, of both pools |
| report | what is left at the end, and whether a write was lost |
| plain, _rich | the two views |

The other parts are those of the demo without PostgreSQL.
"""
