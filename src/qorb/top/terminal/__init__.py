"""The command `qorb top`: a pool's statistics server, watched from a terminal.

| module | |
|---|---|
| command | the options, and the run |
| address | where the statistics are, as people write it |
| frame | what the server sends, read and checked |
| rates | from frames to figures per second and quantiles, by the clock of arrival |
| rows | which backends are shown, in which order; bars and sparklines |
| words | numbers and names as text; a reading as plain text, or as JSON |
| following | one connection after the other, with pauses that grow |
| dialling | the TCP connection under it |
| _websockets | one connection |
| _textual | the view that stays open |
"""
