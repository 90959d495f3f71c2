"""The command `qorb resolve`: what a pool would be told by a DnsResolver, and why.

| module | |
|---|---|
| command | the options, and the run |
| notes | what is asked and answered, as the resolver's journal |
| picture | what follows from it: backends, answers, warnings; what is new since the one before |
| words | a picture as text, or as JSON |
"""
