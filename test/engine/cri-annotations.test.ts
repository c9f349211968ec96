/**
 * Which annotations of a container's config.json its pod's author can write: what the policy reads of a pod
 * (src/policy/pod.ts) must not be among them.
 */

import assert from "node:assert/strict";
import { type TestContext, test } from "node:test";
import { podOf } from "../../src/policy/pod.ts";
import { CriError, connect, container, type Pod, pod } from "../lab/cri.ts";
import { needsCrio, startCrio } from "../lab/crio.ts";
import { type Daemon, startContainerd } from "../lab/engines.ts";
import { reference } from "../lab/images.ts";
import { needsLab } from "../lab/machine.ts";

/** containerd's own, that it writes on containers or on sandboxes. */
const CONTAINERD = [
  ...["container-name", "container-type", "image-name", "podsandbox.image-name", "sandbox-id", "sandbox-log-directory"],
  ...["sandbox-name", "sandbox-namespace", "sandbox-uid"],
].map((name) => `io.kubernetes.cri.${name}`);

/** CRI-O's own, likewise. */
const CRIO = [
  ...["Annotations", "CgroupParent", "ContainerID", "ContainerName", "ContainerType", "Created", "HostName"],
  ...[
    "HostNetwork",
    "Image",
    "ImageName",
    "ImageRef",
    "KubeName",
    "Labels",
    "LogPath",
    "Metadata",
    "MountPoint",
    "Name",
  ],
  ...["Namespace", "NamespaceOptions", "PrivilegedRuntime", "ResolvPath", "RuntimeHandler", "SandboxID", "SandboxName"],
  ...["SeccompProfilePath", "Stdin", "StdinOnce", "TTY", "Volumes"],
].map((name) => `io.kubernetes.cri-o.${name}`);

/** Labels of a kubelet, which CRI-O writes as annotations. */
const LABELS = ["container.name", "pod.name", "pod.namespace", "pod.uid"].map((name) => `io.kubernetes.${name}`);

const ALL = [...CONTAINERD, ...CRIO, ...LABELS, "io.container.manager"];

interface Seen {
  p: Pod;
  name: string;
  config: { annotations: Record<string, string> };
}

/** A container whose pod has these annotations, with config.json as the engine made it. */
async function seen(t: TestContext, engine: Daemon, annotations: Record<string, string>): Promise<Seen> {
  const cri = connect(t, engine.socket, engine.machine.dir);
  await cri.ready();
  const p = await pod(t, cri, { handler: "runc", annotations });
  const name = "main";
  const made = await container(p, { image: reference("busybox"), name, command: WAIT });
  return { p, name, config: (await made.info())["runtimeSpec"] as Seen["config"] };
}

const WAIT = ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.1; done"];
const FORGED = "forged";

function forge(keys: readonly string[]): Record<string, string> {
  return Object.fromEntries(keys.map((key) => [key, FORGED]));
}

function forged({ annotations }: Seen["config"]): string[] {
  return ALL.filter((key) => annotations[key] === FORGED).sort();
}

function without(keys: readonly string[], ...others: string[]): string[] {
  return keys.filter((key) => !others.includes(key)).sort();
}

function whole({ p: { metadata }, name }: Seen): unknown {
  return { namespace: metadata.namespace, pod: metadata.name, container: name, uid: metadata.uid };
}

for (const version of ["2.1", "1.7"] as const) {
  test(`containerd ${version}: what it says itself, a pod cannot change`, needsLab(), async (t) => {
    const engine = startContainerd(t, { version });
    const got = await seen(t, engine, forge(ALL));
    assert.deepEqual(
      forged(got.config),
      [
        ...["io.kubernetes.cri.podsandbox.image-name", "io.kubernetes.cri.sandbox-log-directory"],
        ...[...CRIO, ...LABELS, "io.container.manager"],
      ].sort(),
      "it writes the labels of the kubelet nowhere: on containerd they are the pod's word",
    );
    const { annotations } = got.config;
    assert.equal(annotations["io.kubernetes.cri.container-type"], "container");
    assert.equal(annotations["io.kubernetes.cri.sandbox-id"], got.p.id);
    assert.throws(() => podOf(got.config), { code: "E_POD" });
    const cri = connect(t, engine.socket, engine.machine.dir);
    const crio = forge(["io.kubernetes.cri-o.ContainerType"]);
    // Only who asks for a GPU is asked who it is.
    const p = await pod(t, cri, { handler: "sluice", annotations: crio });
    const asking = { image: reference("busybox"), command: ["sleep", "1"], env: { NVIDIA_VISIBLE_DEVICES: "0" } };
    await assert.rejects(container(p, asking), (error: unknown) => {
      assert.ok(error instanceof CriError);
      return /sluice: E_POD: /.test(error.details);
    });

    const others = await seen(t, engine, forge(without(ALL, "io.kubernetes.cri-o.ContainerType")));
    assert.deepEqual(podOf(others.config), whole(others));
  });
}

test("CRI-O: what it says itself, and the kubelet's labels, a pod cannot change", needsCrio(), async (t) => {
  const engine = startCrio(t);
  const got = await seen(t, engine, forge(ALL));
  assert.deepEqual(
    forged(got.config),
    [
      ...without(CONTAINERD, "io.kubernetes.cri.container-type"),
      ...["CgroupParent", "ContainerName", "HostName", "HostNetwork", "KubeName", "Namespace", "NamespaceOptions"].map(
        (name) => `io.kubernetes.cri-o.${name}`,
      ),
      ...["PrivilegedRuntime", "RuntimeHandler"].map((name) => `io.kubernetes.cri-o.${name}`),
    ].sort(),
    "what it writes on sandboxes only is the pod's word on containers",
  );
  const { annotations } = got.config;
  assert.equal(annotations["io.kubernetes.cri-o.ContainerType"], "container");
  assert.equal(annotations["io.kubernetes.cri-o.SandboxID"], got.p.id);
  assert.equal(annotations["io.container.manager"], "cri-o");
  assert.ok(!("io.kubernetes.cri.container-type" in annotations), "it lets no pod have containerd's");
  assert.deepEqual(podOf(got.config), whole(got));
});
