import { quote, SluiceError } from "../sys/error.ts";
import { checkName } from "./name.ts";

const VARIABLE = "NVIDIA_VISIBLE_DEVICES=";

/** Characters; see ask.ts. */
const MAX_LENGTH = 16_384;

/**
 * What `NVIDIA_VISIBLE_DEVICES` asks for (reference nvidia-amd-cdi.md 1.4): `undefined` for nothing (unset, empty,
 * `void`), `"driver"` for the driver's files without a GPU (`none`), else qualified CDI device names, each once.
 *
 * Items are qualified names, or names of the default kind: an index, a UUID, `all`. The last setting of the variable
 * counts. Unlike NVIDIA's toolkit, a duplicate does not lose the GPU (reference 1.4, duplicate ids).
 *
 * @throws SluiceError E_REQUEST_ENV or E_CDI_NAME
 */
export function readVisibleDevices(
  env: readonly string[],
  defaultKind: string,
): readonly string[] | "driver" | undefined {
  const setting = env.findLast((entry) => entry.startsWith(VARIABLE));
  const value = setting?.slice(VARIABLE.length).trim();
  if (value === undefined || value === "" || value === "void") return undefined;
  if (value === "none") return "driver";
  if (value.length > MAX_LENGTH) {
    throw bad(`its value has ${value.length} characters`, `keep it below ${MAX_LENGTH}`);
  }
  const names = new Set<string>();
  for (const raw of value.split(",")) {
    const item = raw.trim();
    if (item === "" || item === "none" || item === "void") {
      throw bad(`${quote(value)} has ${item === "" ? "an empty item" : `${item} beside other items`}`, "remove it");
    }
    const name = item.includes("=") || item.includes("/") ? item : `${defaultKind}=${item}`;
    checkName(name, "variable NVIDIA_VISIBLE_DEVICES");
    names.add(name);
  }
  return [...names];
}

function bad(what: string, remedy: string): SluiceError {
  return new SluiceError("E_REQUEST_ENV", `variable NVIDIA_VISIBLE_DEVICES: ${what}`, remedy);
}
