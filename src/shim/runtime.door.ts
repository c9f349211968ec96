import { enter } from "../sys/enter.ts";
import { sys } from "../sys/native.ts";
import { runtime } from "./runtime.ts";

export function main(): number {
  return enter(sys, runtime);
}
