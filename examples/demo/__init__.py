"""The whole story of the broker, each answer checked: a stand-in OpenNebula, a simulated Xen pool, one broker.

`scene` starts and stops what plays, `story` is what happens, `shell` is how a person would do it, `frontend` is
how OpenNebula sees it.
"""
