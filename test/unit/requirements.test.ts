import assert from "node:assert/strict";
import { test } from "node:test";
import { readNvidiaVariables } from "../../src/request/nvidia.ts";
import { readRequest } from "../../src/request/request.ts";
import { checkRequirements, cudaOf, readRequirements } from "../../src/request/requirements.ts";

/** Whether a driver satisfies requirements; throws what is wrong with them. */
function isMet(driver: string | undefined, ...values: string[]): boolean {
  const requirements = values.map((value) => ({ variable: "NVIDIA_REQUIRE_CUDA", value }));
  try {
    checkRequirements(requirements, driver);
    return true;
  } catch (thrown) {
    if ((thrown as { code: string }).code === "E_REQUIREMENT") return false;
    throw thrown;
  }
}

/** The value of CUDA 13.0's images, shortened: their driver, or one of some brands that takes CUDA's newer libraries. */
const CUDA_IMAGE = `cuda>=13.0 ${[535, 550, 565, 570, 575]
  .flatMap((branch) =>
    ["unknown", "grid", "tesla", "nvidia", "quadro", "quadrortx", "nvidiartx", "vapps", "vpc", "vcs", "vws"].map(
      (brand) => `brand=${brand},driver>=${branch},driver<${branch + 1}`,
    ),
  )
  .join(" ")}`;

test("each operator compares versions number by number", () => {
  const table: [string, boolean][] = [
    ["driver=580.65.06", true],
    ["driver=580.65.6", true],
    ["driver=580.65.6.0", true],
    ["driver=580.65", false],
    ["driver!=580.65.06", false],
    ["driver!=580.65.07", true],
    ["driver>580.65", true],
    ["driver>580.65.06", false],
    ["driver>=580.65.06", true],
    ["driver>=580", true],
    ["driver>=580.65.07", false],
    ["driver>=1000", false],
    ["driver>=99.9", true],
    ["driver<581", true],
    ["driver<580.65.06", false],
    ["driver<=580.65.06", true],
    ["driver<=580.65", false],
    ["cuda=13.0", true],
    ["cuda=13", true],
    ["cuda>=13.0", true],
    ["cuda>=13.1", false],
    ["cuda>=12.10", true],
    ["cuda<13", false],
    ["CUDA>=13.1", false],
    ["Driver<451", false],
  ];
  for (const [value, expected] of table) assert.equal(isMet("580.65.06", value), expected, value);
});

test("blanks part alternatives, commas what must hold together, and several variables must all be met", () => {
  const table: [string[], boolean][] = [
    [[""], true],
    [["  "], true],
    [[","], true],
    [["cuda>=12.0,driver>=570"], true],
    [["cuda>=12.0,driver>=590"], false],
    [["driver>=590 cuda>=12.0"], true],
    [["driver>=590  cuda>=14 "], false],
    [["driver>=590,cuda>=12 driver<590,cuda>=12"], true],
    [[",cuda>=12.0,"], true],
    [[" cuda>=12.0"], true],
    [["cuda>=12.0", "driver>=570"], true],
    [["cuda>=12.0", "driver>=590"], false],
    [[], true],
  ];
  for (const [values, expected] of table) {
    assert.equal(isMet("580.65.06", ...values), expected, JSON.stringify(values));
  }
});

test("what a machine does not tell refuses nothing", () => {
  for (const value of ["brand=tesla", "brand!=tesla", "arch>=99", "arch<1", "BRAND=Tesla"]) {
    assert.ok(isMet("580.65.06", value), value);
  }
  // But it makes nothing else hold.
  assert.ok(!isMet("580.65.06", "brand=tesla,cuda>=13.1"));
  for (const value of ["cuda>=99", "driver<1", CUDA_IMAGE]) assert.ok(isMet(undefined, value), value);
});

test("an image of CUDA 13.0 runs with that driver and with those that it names", () => {
  for (const [driver, expected] of [
    ["580.65.06", true],
    ["590.48.01", true],
    ["700.10", true],
    ["535.183.01", true],
    ["575.57.08", true],
    ["560.35.03", false],
    ["525.60.13", false],
    ["470.57.02", false],
  ] as const) {
    assert.equal(isMet(driver, CUDA_IMAGE), expected, driver);
  }
});

test("a driver's CUDA version is known of each branch, at least of newer ones, and not of Tegra's", () => {
  const table: [string, string | undefined][] = [
    ["384.81", "9.0"],
    ["450.80.02", "11.0"],
    ["470.256.02", "11.4"],
    ["535.183.01", "12.2"],
    ["550.127.05", "12.4"],
    ["570.211.01", "12.8"],
    ["580.65.06", "13.0"],
    ["595.71.05", "13.2"],
    ["620.70.06", "13.5"],
    ["540.4.0", undefined],
    ["35.3.1", undefined],
    ["367.48", undefined],
    ["", undefined],
  ];
  for (const [driver, version] of table) assert.equal(cudaOf(driver)?.version, version, driver);
  assert.deepEqual(cudaOf("650.10.03"), { version: "13.5", isLeast: true });
});

test("a driver that is newer than all that are known is refused only by what it surely breaks", () => {
  const table: [string, boolean][] = [
    ["cuda>=13.5", true],
    ["cuda>=99", true],
    ["cuda>99", true],
    ["cuda!=13.5", true],
    ["cuda=13.4", false],
    ["cuda=14.0", true],
    ["cuda<13.5", false],
    ["cuda<13.6", true],
    ["cuda<=13.4", false],
    ["cuda<=13.5", true],
    ["driver>=651", false],
  ];
  for (const [value, expected] of table) assert.equal(isMet("650.10.03", value), expected, value);
});

test("the refusal says what is needed, by which variable, what is there, and what to do", () => {
  const check = (value: string, driver = "580.65.06") =>
    checkRequirements([{ variable: "NVIDIA_REQUIRE_CUDA", value }], driver);
  assert.throws(() => check("cuda>=13.1"), {
    code: "E_REQUIREMENT",
    message:
      "E_REQUIREMENT: the image needs cuda>=13.1 (variable NVIDIA_REQUIRE_CUDA), and the driver 580.65.06 supports " +
      "CUDA 13.0; install a newer driver, use an older image, or set NVIDIA_DISABLE_REQUIRE=1",
  });
  assert.throws(() => check(CUDA_IMAGE, "560.35.03"), {
    message: /the image needs cuda>=13\.0 or one of 55 alternatives .* the driver 560\.35\.03 supports CUDA 12\.6; /,
  });
  assert.throws(() => check("driver<451", "540.4.0"), {
    message: /needs driver<451 .* and the driver is 540\.4\.0; use an image that this driver will do for, or set /,
  });
  assert.throws(() => check("cuda<12", "700.1"), { message: /the driver 700\.1 supports CUDA 13\.5 at least; / });
});

test("what is no constraint is refused, where it has to be looked at", () => {
  for (const value of [
    "cuda",
    "cuda>=",
    ">=12",
    "cuda=>12",
    "cuda==12",
    "cuda>>12",
    "cuda<>12",
    "cuda!12",
    "cuda>=x",
    "cuda>=12.x",
    "cuda>=.1",
    "cuda>=12.",
    "cuda>=-1",
    "cuda>=1e3",
    "cuda>=9999999999",
    "cuda >= 12",
    "cuda>=12\t",
    "brand>tesla",
    "brand=",
    "os=linux",
    "__proto__=1",
    "cuda>=12=13",
    "csv-mounts=all",
    "\u0000",
    "driver>=9,nonsense",
    "cuda>=99 nonsense",
  ]) {
    assert.throws(
      () => isMet("580.65.06", value),
      { code: "E_REQUEST_ENV", message: /variable NVIDIA_REQUIRE_CUDA: .* is not a constraint; / },
      value,
    );
  }
  for (const value of ["cuda>=12 nonsense", "cuda>=99,nonsense cuda>=12"]) assert.ok(isMet("580.65.06", value), value);
});

function read(...env: string[]): string[] {
  return readRequirements(readNvidiaVariables(env)).map(({ variable, value }) => `${variable}=${value}`);
}

test("every NVIDIA_REQUIRE variable counts but Tegra's, unless NVIDIA_DISABLE_REQUIRE is true", () => {
  const env = ["NVIDIA_REQUIRE_CUDA=cuda>=12", "NVIDIA_REQUIRE_ANY=driver>=1", "NVIDIA_REQUIRE_=", "NVIDIA_REQUIRED=x"];
  const all = ["NVIDIA_REQUIRE_CUDA=cuda>=12", "NVIDIA_REQUIRE_ANY=driver>=1", "NVIDIA_REQUIRE_="];
  assert.deepEqual(read(...env, "NVIDIA_REQUIRE_JETPACK=csv-mounts=all", "NVIDIA_REQUIRE_JETPACK_HOST=x"), all);
  for (const value of ["1", "t", "T", "true", "True", "TRUE"]) {
    assert.deepEqual(read(...env, `NVIDIA_DISABLE_REQUIRE=${value}`), [], value);
  }
  for (const value of ["", "0", "false", "yes", "tRUE", " 1"]) {
    assert.deepEqual(read(...env, `NVIDIA_DISABLE_REQUIRE=${value}`), all, value);
  }
  assert.deepEqual(read("NVIDIA_REQUIRE_CUDA=a", "NVIDIA_REQUIRE_CUDA=b"), ["NVIDIA_REQUIRE_CUDA=b"]);
});

test("more requirements, or longer ones, than an image honestly has are refused", () => {
  const many = Array.from({ length: 33 }, (_, i) => `NVIDIA_REQUIRE_${i}=`);
  assert.equal(read(...many.slice(1)).length, 32);
  assert.throws(() => read(...many), { code: "E_REQUEST_ENV", message: /there are 33 of them; keep at most 32/ });
  assert.throws(() => read(`NVIDIA_REQUIRE_CUDA=${"cuda>=1 ".repeat(1 << 16)}`), {
    code: "E_REQUEST_ENV",
    message: /variable NVIDIA_REQUIRE_CUDA: its value has 524288 characters/,
  });
  assert.throws(() => read(`NVIDIA_REQUIRE_\u001b[2J${"A".repeat(500)}=${"x".repeat(20_000)}`), {
    code: "E_REQUEST_ENV",
    message: /^E_REQUEST_ENV: variable NVIDIA_REQUIRE_\\u001b\[2JA{81}: its value has/,
  });
});

test("the longest demands that are taken are looked at in no time", () => {
  const longest = [
    "cuda>=99 ".repeat(1820),
    Array.from({ length: 1100 }, (_, i) => `cuda=${i}.${i}`).join(" "),
    `${"driver>=1,".repeat(1600)}cuda>=99`,
    ",".repeat(16_000),
    " ".repeat(16_000),
  ];
  for (const value of longest) {
    assert.ok(value.length <= 16_384);
    assert.equal(isMet("580.65.06", ...Array.from({ length: 32 }, () => value)), /^[, ]+$/.test(value));
  }
});

test("a request has requirements only beside something of NVIDIA's", () => {
  const env = ["NVIDIA_REQUIRE_CUDA=cuda>=12"];
  const annotated = (device: string) =>
    readRequest({ process: { env }, annotations: { "gpu.sluice.dev": device } }, "nvidia.com/gpu").requirements?.length;
  assert.equal(annotated("nvidia.com/gpu=0"), 1);
  assert.equal(annotated("k8s.gpu.nvidia.com/claim=x"), 1);
  assert.equal(annotated("amd.com/gpu=0"), undefined);
  assert.equal(annotated("nvidia.com/gds=all"), undefined);
  const visible = (value: string) =>
    readRequest({ process: { env: [...env, `NVIDIA_VISIBLE_DEVICES=${value}`] } }, "nvidia.com/gpu").requirements
      ?.length;
  assert.deepEqual(["all", "none", "void", ""].map(visible), [1, 1, undefined, undefined]);
});
