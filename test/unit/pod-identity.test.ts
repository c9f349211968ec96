import assert from "node:assert/strict";
import { test } from "node:test";
import { podOf, sandboxOf, shownPod } from "../../src/policy/pod.ts";
import { containerd, crio, POD, SANDBOX } from "../support/pods.ts";

/** Every key of both engines, as a pod that lies has them in its own annotations. */
const FORGED = Object.fromEntries(
  [
    ...["sandbox-id", "sandbox-namespace", "sandbox-uid", "sandbox-name", "container-name", "image-name"].map(
      (key) => `io.kubernetes.cri.${key}`,
    ),
    ...["Namespace", "KubeName", "ContainerName", "SandboxID", "Metadata", "Labels", "Name"].map(
      (key) => `io.kubernetes.cri-o.${key}`,
    ),
    ...["pod.namespace", "pod.name", "pod.uid", "container.name"].map((key) => `io.kubernetes.${key}`),
    "io.container.manager",
  ].map((key) => [key, "forged"]),
);

test("a container of containerd's is told by the keys that containerd writes last, whatever its pod forges", () => {
  assert.deepEqual(podOf({ annotations: containerd() }), POD);
  assert.deepEqual(podOf({ annotations: containerd(FORGED) }), POD);
  assert.equal(sandboxOf({ annotations: containerd(FORGED) }), SANDBOX);
});

test("a container of CRI-O's is told by the kubelet's labels, whatever its pod forges", () => {
  assert.deepEqual(podOf({ annotations: crio() }), POD);
  assert.deepEqual(podOf({ annotations: crio(FORGED) }), POD);
});

test("the sandbox is the engine's own word: containerd's key on CRI-O is the pod's", () => {
  assert.equal(sandboxOf({ annotations: crio() }), SANDBOX);
  assert.equal(sandboxOf({ annotations: crio(FORGED) }), SANDBOX);
  assert.equal(sandboxOf({}), undefined);
  assert.equal(sandboxOf({ annotations: FORGED }), undefined);
});

test("the types of both engines at once are a lie, and no container of a pod becomes a sandbox by one", () => {
  for (const annotations of [
    containerd({ "io.kubernetes.cri-o.ContainerType": "sandbox" }),
    containerd({ "io.kubernetes.cri-o.ContainerType": "container", "io.container.manager": "libpod" }),
    crio({ "io.kubernetes.cri.container-type": "sandbox" }),
  ]) {
    assert.throws(() => podOf({ annotations }), { code: "E_POD", message: /each engine writes only its own; remove/ });
  }
});

test("a sandbox has no workload, and a container of no pod has no pod", () => {
  assert.equal(podOf({ annotations: { ...containerd(), "io.kubernetes.cri.container-type": "sandbox" } }), undefined);
  assert.equal(podOf({ annotations: { ...crio(), "io.kubernetes.cri-o.ContainerType": "sandbox" } }), undefined);
  for (const config of [{}, { annotations: {} }, { annotations: FORGED }]) assert.equal(podOf(config), undefined);
});

test("a container of a Podman pod is of no kubelet's, although Podman writes CRI-O's key", () => {
  const annotations = {
    "io.container.manager": "libpod",
    "io.kubernetes.cri-o.ContainerType": "container",
    "io.kubernetes.cri-o.SandboxID": SANDBOX,
  };
  assert.equal(podOf({ annotations }), undefined);
  // Nobody becomes one by saying so: on CRI-O the key is the engine's own.
  assert.deepEqual(podOf({ annotations: crio({ "io.container.manager": "libpod" }) }), POD);
});

test("a type that is neither container nor sandbox is a container", () => {
  for (const type of ["", "Sandbox", "sandbox ", "pod"]) {
    assert.deepEqual(podOf({ annotations: { ...containerd(), "io.kubernetes.cri.container-type": type } }), POD);
  }
});

test("what each engine writes and is not there, or is empty, is named", () => {
  for (const [key, annotations] of [
    ["io.kubernetes.cri.sandbox-namespace", containerd()],
    ["io.kubernetes.cri.sandbox-name", containerd()],
    ["io.kubernetes.cri.container-name", containerd()],
    ["io.kubernetes.pod.namespace", crio()],
    ["io.kubernetes.pod.name", crio()],
    ["io.kubernetes.container.name", crio()],
  ] as const) {
    for (const spoilt of [
      { ...annotations, [key]: "" },
      Object.fromEntries(Object.entries(annotations).filter(([name]) => name !== key)),
    ]) {
      assert.throws(() => podOf({ annotations: spoilt }), {
        code: "E_POD",
        message: new RegExp(`no annotation "${key}".*; .*policy\\.trust = "engine"`),
      });
    }
  }
});

test("without the pod's UID there is none, and nothing inherited counts", () => {
  const { uid: _, ...without } = POD;
  assert.deepEqual(podOf({ annotations: containerd({}, without) }), without);
  const annotations = Object.create({ "io.kubernetes.cri.container-type": "container" });
  assert.equal(podOf({ annotations }), undefined);
});

test("a pod is shown without harm", () => {
  assert.equal(shownPod({ namespace: "a", pod: "b\n\u001b[2J", container: "c" }), '"a/b\\n\\u001b[2J/c"');
  assert.ok(shownPod({ namespace: "a", pod: "b".repeat(9999), container: "c" }).length < 500);
});
