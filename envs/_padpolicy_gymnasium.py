"""Makes `gymnasium.make("padpolicy/Tabletop-v0")` work without importing anything of ours, worker processes included.

Gymnasium 1.0 dropped the entry point through which packages used to register environments. A `.pth` file beside
this module imports it when Python starts; it waits for `import gymnasium` and registers then. Because every start of
Python pays for it, it imports nothing but `sys`, not even importlib.abc (30 ms).
"""

import sys


class _Loader:
    """Loads gymnasium with its own loader, then registers our environments."""

    def __init__(self, loader):
        self._loader = loader

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        module.__spec__.loader = module.__loader__ = self._loader  # nobody else needs to know
        self._loader.exec_module(module)
        # By name only: importing padpolicy_envs here would bring mujoco into every program that uses gymnasium.
        module.register("padpolicy/Tabletop-v0", entry_point="padpolicy_envs.tabletop:Tabletop")
        module.register("padpolicy/MetaWorld-v0", entry_point="padpolicy_envs.metaworld:MetaWorld")


class _Finder:
    def find_spec(self, fullname, path=None, target=None):
        if fullname != "gymnasium":
            return None
        sys.meta_path.remove(self)
        for finder in sys.meta_path:
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader)
                return spec
        return None


sys.meta_path.insert(0, _Finder())
