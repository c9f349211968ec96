/** `make lab`: makes all of the lab that is not there yet. */

import { makeParts } from "../gpu/kit.ts";
import { makeVm } from "../vm/build.ts";
import { ENGINE_SUITES, engineRoot } from "./build.ts";
import { IMAGES, image } from "./images.ts";

if (process.geteuid?.() !== 0) {
  process.stderr.write("lab: it holds roots with device nodes and other users' files, so root must make it\n");
  process.exit(1);
}
try {
  for (const suite of ENGINE_SUITES) engineRoot(suite);
  for (const name of IMAGES) image(name);
  makeParts();
  makeVm();
} catch (thrown) {
  process.stderr.write(`lab: ${thrown instanceof Error ? thrown.message : thrown}\n`);
  process.exit(1);
}
