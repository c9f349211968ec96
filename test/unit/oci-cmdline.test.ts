import assert from "node:assert/strict";
import { test } from "node:test";
import { type CommandLine, parseCommandLine } from "../../src/oci/cmdline.ts";

/** Arguments as one would type them; none of these has a space in it. */
function parse(line: string): CommandLine {
  return parseCommandLine(line === "" ? [] : line.split(" "));
}

test("the command lines of containerd, Docker, CRI-O and Podman are understood", () => {
  const cases: [string, CommandLine][] = [
    // containerd, and ctr and Docker through it (go-runc)
    [
      "--root /run/containerd/runc/k8s.io --log /r/log.json --log-format json --systemd-cgroup create --bundle /r --pid-file /r/init.pid --console-socket /tmp/pty.sock c1",
      {
        command: "create",
        bundle: "/r",
        id: "c1",
        root: "/run/containerd/runc/k8s.io",
        log: "/r/log.json",
        logFormat: "json",
      },
    ],
    [
      "--root /var/run/docker/runtime-runc/moby --log /r/log.json --log-format json create --bundle /r --pid-file /r/init.pid --no-pivot --no-new-keyring c1",
      {
        command: "create",
        bundle: "/r",
        id: "c1",
        root: "/var/run/docker/runtime-runc/moby",
        log: "/r/log.json",
        logFormat: "json",
      },
    ],
    [
      "--root /r --log /l --log-format json restore --image-path /i --work-path /w --parent-path /p --detach --pid-file /f --no-pivot -no-subreaper --bundle /b c1",
      { command: "restore", bundle: "/b", id: "c1", root: "/r", log: "/l", logFormat: "json", lasting: true },
    ],
    [
      "--root /r --log /l --log-format json delete --force c1",
      { command: "delete", id: "c1", root: "/r", log: "/l", logFormat: "json" },
    ],
    ["--root /r --log /l --log-format json state c1", { command: "state", root: "/r", log: "/l", logFormat: "json" }],
    ["--root /r start c1", { command: "start", root: "/r" }],
    ["--root /r kill --all c1 9", { command: "kill", root: "/r" }],
    ["--root /r exec --process /p --detach --pid-file /f c1", { command: "exec", root: "/r" }],
    ["--root /r update --resources=- c1", { command: "update", root: "/r" }],
    ["features", { command: "features" }],
    ["--version", {}],
    // conmon for CRI-O: joined --root, and --systemd-cgroup before it
    [
      "--systemd-cgroup --root=/run/runc create --bundle /b --pid-file /b/pidfile --no-new-keyring --preserve-fds 2 c1",
      { command: "create", bundle: "/b", id: "c1", root: "/run/runc" },
    ],
    ["--root=/run/runc --systemd-cgroup start c1", { command: "start", root: "/run/runc" }],
    // conmon for Podman, with crun
    [
      "--log-format=json --log /l --cgroup-manager disabled create --bundle /b --pid-file /b/pidfile --console-socket /s c1",
      { command: "create", bundle: "/b", id: "c1", log: "/l", logFormat: "json" },
    ],
    [
      "restore --bundle /b --pid-file /p --detach --image-path /i --work-path /b --tcp-established --lsm-profile=apparmor:x c1",
      { command: "restore", bundle: "/b", id: "c1", lasting: true },
    ],
  ];
  for (const [line, expected] of cases) assert.deepEqual(parse(line), expected, line);
});

test("the bundle is found in every form of its flag", () => {
  for (const flag of ["--bundle /b", "--bundle=/b", "-bundle /b", "-bundle=/b", "-b /b", "-b=/b", "-b/b"]) {
    for (const command of ["create", "run", "restore"]) {
      assert.deepEqual(parse(`${command} ${flag} c1`), { command, bundle: "/b", id: "c1" }, flag);
      assert.deepEqual(parse(`${command} c1 ${flag}`), { command, bundle: "/b", id: "c1" }, flag);
      assert.deepEqual(
        parse(`${command} --no-pivot ${flag} -no-subreaper c1`),
        { command, bundle: "/b", id: "c1" },
        flag,
      );
    }
  }
  assert.deepEqual(parse("run c1"), { command: "run", id: "c1" });
  assert.deepEqual(parse("create -b /b=c c1"), { command: "create", bundle: "/b=c", id: "c1" });
  assert.deepEqual(parse("create -b/b=c c1"), { command: "create", bundle: "/b=c", id: "c1" });
  assert.deepEqual(parse("create --bundle=/b=c c1"), { command: "create", bundle: "/b=c", id: "c1" });
  assert.deepEqual(parseCommandLine(["create", "--bundle=", "c1"]), { command: "create", bundle: "", id: "c1" });
  assert.deepEqual(parse("create --bundle /a --bundle /b c1"), { command: "create", bundle: "/b", id: "c1" });
});

test("values and ids that look like commands or flags are not taken for them", () => {
  assert.deepEqual(parse("--root create --log run state c1"), { command: "state", root: "create", log: "run" });
  assert.deepEqual(parse("create --bundle delete create"), { command: "create", bundle: "delete", id: "create" });
  assert.deepEqual(parse("start create"), { command: "start" });
  assert.deepEqual(parse("--debug create --bundle --no-pivot c1"), {
    command: "create",
    bundle: "--no-pivot",
    id: "c1",
  });
  assert.deepEqual(parse("--rootless true --criu create --log-level debug run c1"), { command: "run", id: "c1" });
  assert.deepEqual(parse("run --pid-file create --console-socket run --pidfd-socket x c1"), {
    command: "run",
    id: "c1",
  });
  assert.deepEqual(parse("restore --empty-ns network --manage-cgroups-mode soft --network-lock x c1"), {
    command: "restore",
    id: "c1",
  });
});

test("two dashes end the flags of their part of the line", () => {
  assert.deepEqual(parse("create --bundle /b -- -c1"), { command: "create", bundle: "/b", id: "-c1" });
  assert.deepEqual(parse("create -- --bundle"), { command: "create", id: "--bundle" });
  assert.deepEqual(parse("--debug -- create --bundle /b c1"), { command: "create", bundle: "/b", id: "c1" });
  assert.deepEqual(parse("delete -"), { command: "delete", id: "-" });
});

test("-f is a file for create and run and a switch for delete", () => {
  assert.deepEqual(parse("create -f /c.json c1"), { command: "create", config: "/c.json", id: "c1" });
  assert.deepEqual(parse("run -f/c.json -b /b c1"), { command: "run", config: "/c.json", bundle: "/b", id: "c1" });
  assert.deepEqual(parse("create --config=/c.json c1"), { command: "create", config: "/c.json", id: "c1" });
  assert.deepEqual(parse("delete -f c1"), { command: "delete", id: "c1" });
  assert.deepEqual(parse("delete c1 -force"), { command: "delete", id: "c1" });
  // kata-runtime has a global one of the same name, which is not the bundle's.
  assert.deepEqual(parse("--config /etc/kata.toml create c1"), { command: "create", id: "c1" });
});

test("flags that nobody knows are taken to have no value, and the last argument is the id", () => {
  assert.deepEqual(parse("--new create --newer c1"), { command: "create", id: "c1" });
  assert.deepEqual(parse("create --newer value c1"), { command: "create", id: "c1" });
  assert.deepEqual(parse("create --newer=value c1"), { command: "create", id: "c1" });
});

test("a call for help and a container that stays are told from values that look like them", () => {
  assert.deepEqual(parse("create --help"), { command: "create", help: true });
  assert.deepEqual(parse("create -h c1"), { command: "create", id: "c1", help: true });
  assert.deepEqual(parse("create --pid-file -h --bundle --help c1"), { command: "create", bundle: "--help", id: "c1" });
  assert.deepEqual(parse("create --bundle /b -- -h"), { command: "create", bundle: "/b", id: "-h" });
  for (const flag of ["-d", "--detach", "-detach", "--detach=true", "--keep"]) {
    assert.deepEqual(parse(`run ${flag} c1`), { command: "run", id: "c1", lasting: true });
  }
  assert.deepEqual(parse("run --detach=false c1"), { command: "run", id: "c1" });
  assert.deepEqual(parse("run --pid-file -d c1"), { command: "run", id: "c1" });
});

test("a line that ends too early gives what it has", () => {
  assert.deepEqual(parse(""), {});
  assert.deepEqual(parse("--root"), {});
  assert.deepEqual(parse("create --bundle"), { command: "create" });
  assert.deepEqual(parse("create"), { command: "create" });
});
