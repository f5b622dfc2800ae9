# SPDX-License-Identifier: BSD-3-Clause
"""NBD servers that backups go to: willing, slow, failing, or gone."""
import os
import signal
import socket

from . import procs


def _accepts(family, where):
    with socket.socket(family) as s:
        try:
            s.connect(where)
            return True
        except OSError:
            return False


def slow_target(megabytes):
    """What makes nbdkit take so many MB/s, evenly: without a short
    burstiness its rate filter lets the first two seconds through at once."""
    return {"filters": ["rate"],
            "parameters": ["rate=%dM" % (megabytes * 8), "burstiness=0.1"]}


class Target:
    """One server process.  Over TCP on loopback unless unix=True."""

    def __init__(self, directory, name="target", unix=False):
        self.dir = str(directory)
        self.name = name
        self.unix = os.path.join(self.dir, name + ".sock") if unix else None
        self.port = None if unix else procs.free_port()
        self.log = os.path.join(self.dir, name + ".log")
        self.mark = procs.new_mark()
        self.child = None
        self.tls = None         # (psk file, user) when TLS is required

    def _start(self, argv):
        self.child = procs.Child(argv, mark=self.mark, stderr_path=self.log)
        where = ((socket.AF_UNIX, self.unix) if self.unix else
                 (socket.AF_INET, ("127.0.0.1", self.port)))
        self.argv = argv

        def ready():
            if not self.child.alive():
                raise AssertionError("%s: %s" % (argv[0],
                                                 self.child.stderr()[-2000:]))
            return _accepts(*where)
        procs.wait_until(ready, "%s accepts" % self.name)
        return self

    def nbdkit(self, *plugin, filters=(), options=()):
        """Start nbdkit: plugin with its parameters, e.g. "file", path."""
        argv = ["nbdkit", "-f", "--exit-with-parent"]
        argv += ["-U", self.unix] if self.unix else [
            "-i", "127.0.0.1", "-p", str(self.port)]
        argv += ["--filter=" + f for f in filters]
        return self._start(argv + [str(o) for o in options] +
                           [str(p) for p in plugin])

    def file(self, path, size=None, filters=(), parameters=(), options=()):
        """nbdkit's file plugin over a raw file; size creates it anew."""
        if size is not None:
            with open(path, "wb") as f:
                f.truncate(size)
        self.path = str(path)
        return self.nbdkit("file", path, *parameters, filters=filters,
                           options=options)

    def qemu_nbd(self, path, fmt="raw", options=()):
        argv = ["qemu-nbd", "--persistent", "--shared=16", "-f", fmt]
        argv += ["-k", self.unix] if self.unix else [
            "-b", "127.0.0.1", "-p", str(self.port)]
        self.path = str(path)
        return self._start(argv + list(options) + [str(path)])

    def psk(self, user="alice"):
        """Options for nbdkit that require TLS with a fresh key."""
        path = os.path.join(self.dir, self.name + ".psk")
        key = os.urandom(32).hex()
        with open(path, "w", opener=lambda p, f: os.open(p, f, 0o600)) as f:
            f.write("%s:%s\n" % (user, key))
        self.tls = (path, user)
        return ["--tls=require", "--tls-psk=" + path]

    def server_address(self):
        """SocketAddress for blockdev-add's nbd driver."""
        if self.unix:
            return {"type": "unix", "path": self.unix}
        return {"type": "inet", "host": "127.0.0.1", "port": str(self.port)}

    def blockdev(self, node, export=None, **more):
        """Arguments of blockdev-add for a node on this server."""
        args = {"driver": "nbd", "node-name": node,
                "server": self.server_address()}
        if export is not None:
            args["export"] = export
        args.update({k.replace("_", "-"): v for k, v in more.items()})
        return args

    def uri(self, export=""):
        if self.unix:
            return "nbd+unix:///%s?socket=%s" % (export, self.unix)
        return "nbd://127.0.0.1:%d/%s" % (self.port, export)

    def restart(self):
        """Start the same server on the same address again."""
        if self.unix and os.path.exists(self.unix):
            os.unlink(self.unix)
        return self._start(self.argv)

    def kill9(self):
        self.child.kill()

    def freeze(self):
        """Stop answering without closing anything."""
        self.child.signal(signal.SIGSTOP)

    def thaw(self):
        self.child.signal(signal.SIGCONT)

    def cleanup(self):
        if self.child and self.child.alive():
            self.child.signal(signal.SIGCONT)
            self.child.kill()
        procs.kill_marked(self.mark)
