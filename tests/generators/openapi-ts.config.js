// By itself @hey-api/openapi-ts looks for a tsconfig.json beside where it is installed, and so misses ours.
export default {
  input: "openapi.json",
  output: { path: "hey", module: { extension: ".js" } },
};
