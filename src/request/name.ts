import { parseDeviceName } from "../cdi/name.ts";
import { reasonOf, SluiceError } from "../sys/error.ts";

/**
 * Checks a CDI device name in a request.
 * @param where the annotation or variable, for the message
 * @throws SluiceError E_CDI_NAME
 */
export function checkName(name: string, where: string): void {
  try {
    parseDeviceName(name);
  } catch (thrown) {
    throw new SluiceError("E_CDI_NAME", `${where}: ${reasonOf(thrown)}`, "write vendor/class=name", thrown);
  }
}
