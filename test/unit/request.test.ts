import assert from "node:assert/strict";
import { test } from "node:test";
import type { Config } from "../../src/oci/spec.ts";
import { parseQuantity } from "../../src/request/quantity.ts";
import { readRequest } from "../../src/request/request.ts";

const KIND = "nvidia.com/gpu";

function names(config: Config): string[] {
  return readRequest(config, KIND).devices.map((device) => device.name);
}

function visible(value: string): Config {
  return { process: { env: ["PATH=/bin", `NVIDIA_VISIBLE_DEVICES=${value}`] } };
}

function ask(value: string): Config {
  return { annotations: { "gpu.sluice.dev": value } };
}

test("a container without annotations and variables asks for nothing", () => {
  for (const config of [{}, { annotations: {} }, { process: {} }, { process: { env: ["A=b"] } }]) {
    assert.deepEqual(readRequest(config, KIND), { devices: [], driver: [] });
  }
});

test("NVIDIA_VISIBLE_DEVICES takes indices, UUIDs, MIG names, all and qualified names on the default kind", () => {
  const table: [string, string[]][] = [
    ["", []],
    ["void", []],
    ["0", ["nvidia.com/gpu=0"]],
    ["all", ["nvidia.com/gpu=all"]],
    ["0,1", ["nvidia.com/gpu=0", "nvidia.com/gpu=1"]],
    [" 1 , 0 ", ["nvidia.com/gpu=1", "nvidia.com/gpu=0"]],
    ["0:1", ["nvidia.com/gpu=0:1"]],
    ["GPU-5ac1-2", ["nvidia.com/gpu=GPU-5ac1-2"]],
    ["MIG-x", ["nvidia.com/gpu=MIG-x"]],
    ["amd.com/gpu=3,0", ["amd.com/gpu=3", "nvidia.com/gpu=0"]],
  ];
  for (const [value, expected] of table) assert.deepEqual(names(visible(value)), expected, value);
});

test("a duplicate in NVIDIA_VISIBLE_DEVICES gives the GPU once, never none", () => {
  assert.deepEqual(names(visible("0,0")), ["nvidia.com/gpu=0"]);
  assert.deepEqual(names(visible("0,nvidia.com/gpu=0")), ["nvidia.com/gpu=0"]);
});

test("NVIDIA_VISIBLE_DEVICES=none asks for the driver's files without a device", () => {
  const { devices, driver } = readRequest(visible("none"), KIND);
  assert.deepEqual(devices, []);
  assert.deepEqual(driver, [{ kind: KIND, from: "variable NVIDIA_VISIBLE_DEVICES" }]);
});

test("the last setting of NVIDIA_VISIBLE_DEVICES counts", () => {
  const env = ["NVIDIA_VISIBLE_DEVICES=all", "NVIDIA_VISIBLE_DEVICES=1"];
  assert.deepEqual(names({ process: { env } }), ["nvidia.com/gpu=1"]);
});

test("a malformed NVIDIA_VISIBLE_DEVICES is refused and named", () => {
  for (const value of ["0,", ",", "0,,1", "0,none", "void,1"]) {
    assert.throws(() => names(visible(value)), { code: "E_REQUEST_ENV", message: /NVIDIA_VISIBLE_DEVICES/ }, value);
  }
  for (const value of ["a/b=c=", "=", "/=", "a/=b", "0;rm", "../../etc", "0\n1", "\u0000", "é", "a b"]) {
    assert.throws(() => names(visible(value)), { code: "E_CDI_NAME", message: /NVIDIA_VISIBLE_DEVICES/ }, value);
  }
  assert.throws(() => names(visible("0".repeat(1 << 20))), { code: "E_REQUEST_ENV", message: /1048576 characters/ });
});

test("annotations of cdi.k8s.io ask for what they name, in the order of their keys", () => {
  const annotations = { "cdi.k8s.io/b": "x.com/y=2", "cdi.k8s.io/a": "x.com/y=3,x.com/y=1", other: "x" };
  const request = readRequest({ annotations }, KIND);
  assert.deepEqual(request.devices, [
    { name: "x.com/y=3", from: "annotation cdi.k8s.io/a" },
    { name: "x.com/y=1", from: "annotation cdi.k8s.io/a" },
    { name: "x.com/y=2", from: "annotation cdi.k8s.io/b" },
  ]);
});

test("an annotation on purpose outweighs the variable, which may come from the image", () => {
  const config = { ...visible("all"), annotations: { "gpu.sluice.dev": "nvidia.com/gpu=1" } };
  assert.deepEqual(names(config), ["nvidia.com/gpu=1"]);
});

test("a device asked for in two ways is given once, for the first reason", () => {
  const annotations = { "gpu.sluice.dev": "x.com/y=1", "cdi.k8s.io/a": "x.com/y=1" };
  assert.deepEqual(readRequest({ annotations }, KIND).devices, [
    { name: "x.com/y=1", from: "annotation gpu.sluice.dev" },
  ]);
});

test("in a pod the container's own annotation wins over the pod's", () => {
  const pod = {
    "io.kubernetes.cri.container-name": "main",
    "gpu.sluice.dev/pod": "x.com/y=pod",
    "gpu.sluice.dev/container.main": "x.com/y=main",
    "gpu.sluice.dev/container.other": "x.com/y=other",
  };
  assert.deepEqual(names({ annotations: pod }), ["x.com/y=main"]);
  assert.deepEqual(names({ annotations: { ...pod, "io.kubernetes.cri.container-name": "third" } }), ["x.com/y=pod"]);
});

test("a pod's sandbox asks for nothing", () => {
  for (const type of ["io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType"]) {
    assert.deepEqual(
      names({ ...visible("all"), annotations: { [type]: "sandbox", "gpu.sluice.dev/pod": "a/b=c" } }),
      [],
    );
  }
});

test("an annotation for one container is refused where the engine does not name the container", () => {
  assert.throws(() => names({ annotations: { "gpu.sluice.dev/container.main": "a/b=c" } }), {
    code: "E_REQUEST_ANNOTATION",
  });
  assert.throws(() => names({ annotations: { "gpu.sluice.dev/pods": "a/b=c" } }), { code: "E_REQUEST_ANNOTATION" });
});

test("the whole grammar of gpu.sluice.dev is checked", () => {
  const table: [string, string][] = [
    ["", "E_REQUEST_SYNTAX"],
    ["x.com/y=1,", "E_REQUEST_SYNTAX"],
    ["gpu", "E_REQUEST_SYNTAX"],
    ["=1", "E_REQUEST_SYNTAX"],
    ["x.com/y=1,x.com/y=1", "E_REQUEST_DUPLICATE"],
    ["x.com/y=1,mode=mps,mode=mps", "E_REQUEST_DUPLICATE"],
    ["x.com/y=1,colour=red", "E_REQUEST_KEY"],
    ["x.com/y=1,__proto__=red", "E_REQUEST_KEY"],
    ["x.com/y=1,mode=shared", "E_REQUEST_VALUE"],
    ["x.com/y=1,mode=limiter,memory=8Q", "E_REQUEST_VALUE"],
    ["x.com/y=1,mode=limiter,memory=-1", "E_REQUEST_VALUE"],
    ["x.com/y=1,mode=limiter,memory=0", "E_REQUEST_VALUE"],
    ["x.com/y=1,mode=limiter,cores=0", "E_REQUEST_VALUE"],
    ["x.com/y=1,mode=limiter,cores=101", "E_REQUEST_VALUE"],
    ["x.com/y,count=0", "E_REQUEST_VALUE"],
    ["x.com/y,count=two", "E_REQUEST_VALUE"],
    ["x.com/y=1,mode=mig,profile=.x", "E_REQUEST_VALUE"],
    ["x.com/y=1,count=2", "E_REQUEST_COMBINATION"],
    ["x.com/y,x.com/z,count=2", "E_REQUEST_COMBINATION"],
    ["x.com/y", "E_REQUEST_COMBINATION"],
    ["mode=exclusive", "E_REQUEST_COMBINATION"],
    ["x.com/y=1,memory=8Gi", "E_REQUEST_COMBINATION"],
    ["x.com/y=1,mode=exclusive,cores=30", "E_REQUEST_COMBINATION"],
    ["x.com/y=1,mode=mps,profile=1g.10gb", "E_REQUEST_COMBINATION"],
    ["/=", "E_CDI_NAME"],
    ["a/=b", "E_CDI_NAME"],
    ["x.com/y=\u0000", "E_CDI_NAME"],
  ];
  for (const [value, code] of table) {
    assert.throws(() => names(ask(value)), { code, message: /annotation "gpu\.sluice\.dev"/ }, JSON.stringify(value));
  }
  assert.throws(() => names(ask("a/b=c,".repeat(10_000))), { code: "E_REQUEST_SYNTAX", message: /60000 characters/ });
});

test("what is understood but not there yet is refused, not ignored", () => {
  for (const value of [
    "x.com/y=1,mode=limiter,memory=8Gi,cores=30",
    "x.com/y=1,mode=timeslice",
    "x.com/y=1,mode=mig,profile=1g.10gb",
    "x.com/y=1,mode=vgpu,profile=nvidia-35",
    "x.com/y,count=2",
  ]) {
    assert.throws(() => names(ask(value)), { code: "E_NOT_YET", message: /annotation "gpu\.sluice\.dev"/ }, value);
  }
  assert.deepEqual(names(ask("x.com/y=1, x.com/y=2 ,mode=exclusive")), ["x.com/y=1", "x.com/y=2"]);
});

test("devices and annotations of the command line count first", () => {
  const extra = { devices: ["x.com/y=cli"], annotations: { "gpu.sluice.dev": "x.com/y=extra" } };
  const request = readRequest(ask("x.com/y=own"), KIND, extra);
  assert.deepEqual(request.devices, [
    { name: "x.com/y=cli", from: "option --device" },
    { name: "x.com/y=extra", from: "annotation gpu.sluice.dev" },
  ]);
  assert.throws(() => readRequest({}, KIND, { devices: ["0"], annotations: {} }), { code: "E_CDI_NAME" });
});

test("Kubernetes quantities are read as numbers of bytes", () => {
  const table: [string, number][] = [
    ["8Gi", 8 * 2 ** 30],
    ["1.5Ki", 1536],
    ["500M", 5e8],
    ["128974848", 128_974_848],
    ["129e6", 129_000_000],
    ["1500m", 2],
    [".5k", 500],
    ["+1", 1],
  ];
  for (const [text, value] of table) assert.equal(parseQuantity(text), value, text);
  for (const text of ["", "Gi", "-1", "1 Gi", "1gi", "1e", "0x10", "9999999999999999999", "9999Pi", "NaN", "1Gi\n"]) {
    assert.ok(Number.isNaN(parseQuantity(text)), text);
  }
});
