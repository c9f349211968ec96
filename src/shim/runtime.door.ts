import { enter } from "../sys/enter.ts";
import { sys } from "../sys/native.ts";
import { runtime } from "./runtime.ts";

Object.assign(globalThis, { exitCode: enter(sys, runtime) });
