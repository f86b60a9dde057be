"""Samples of requests in groups that go through the network together, one forward pass at a time.

Here alone serving knows texts and readers. A group takes new samples and loses old ones between any two passes, where
its reader allows that. Samples never see each other, so each gets the tokens that it would get alone.

`sample` is what is written, `group` what all groups have in common, and `cached` what those with a cache of keys have;
`causal`, `two_stream`, `canvas`, `fixed` and `decoded` are the kinds of groups.
"""
