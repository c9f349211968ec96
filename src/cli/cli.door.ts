import { enter } from "../sys/enter.ts";
import { sys } from "../sys/native.ts";
import { cli } from "./cli.ts";

Object.assign(globalThis, { exitCode: enter(sys, cli) });
