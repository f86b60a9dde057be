"""An HTTP server in which every request says how it is to be written.

A request comes in by a route of `app`. `fields` checks its body, `plans` says what is to be written, and `samples`
makes the texts of it. `engine` writes them in a thread that owns the network, pass by pass, in the batches of `groups`.
`answers` makes JSON of what was written.
"""
