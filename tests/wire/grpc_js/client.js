// A stranger's client: @grpc/grpc-js with proto-loader, our .proto files and nothing else of ours.
//
// usage: node client.js JOB, where JOB is JSON with address, protos (include folders), scenario and what that needs.
// Prints one JSON document.
"use strict";

const fs = require("node:fs");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const job = JSON.parse(process.argv[2]);
const definition = loader.loadSync(
  [
    "workspacebroker/v1/workspace_service.proto",
    "workspacebroker/v1/pool_service.proto",
    "workspacebroker/v1/errors.proto",
    "google/rpc/status.proto",
    "google/rpc/error_details.proto",
  ],
  { keepCase: true, longs: Number, enums: String, bytes: String, oneofs: true, includeDirs: job.protos },
);
const { workspacebroker } = grpc.loadPackageDefinition(definition);
const options = { "grpc.service_config": fs.readFileSync(job.serviceConfig, "utf8") };
const plain = grpc.credentials.createInsecure();
const workspaces = new workspacebroker.v1.WorkspaceService(job.address, plain, options);
const pools = new workspacebroker.v1.PoolService(job.address, plain, options);

function call(client, method, request) {
  return new Promise((resolve, reject) => {
    client[method](request, { deadline: Date.now() + 20000 }, (error, answer) =>
      error ? reject(error) : resolve(answer),
    );
  });
}

// google.rpc.Status travels as bytes in a trailer; each detail is an Any of a type that one of our files names.
function status(error) {
  const [packed] = error.metadata.get("grpc-status-details-bin");
  if (packed === undefined) return { code: grpc.status[error.code], message: error.details, details: null };
  const read = definition["google.rpc.Status"].deserialize(packed);
  const details = {};
  for (const any of read.details) {
    const name = any.type_url.split("/").pop();
    details[name] = definition[name].deserialize(Buffer.from(any.value, "base64"));
  }
  return { code: grpc.status[read.code], message: read.message, details, bytes: packed.length };
}

async function refusal(client, method, request) {
  try {
    return { answer: await call(client, method, request) };
  } catch (error) {
    return { grpcCode: grpc.status[error.code], ...status(error) };
  }
}

const scenarios = {
  async list() {
    const listed = await call(pools, "ListPools", {});
    const found = await call(workspaces, "ListWorkspaces", { parent: "tenants/-" });
    return { pools: listed.pools, workspaces: found.workspaces ?? [], revision: found.revision };
  },

  async create() {
    const { workspace } = await call(workspaces, "CreateWorkspace", job.request);
    return call(workspaces, "WaitWorkspace", {
      name: workspace.name,
      states: ["STATE_RUNNING"],
      timeout: { seconds: 15 },
    });
  },

  async refuse() {
    return refusal(workspaces, "CreateWorkspace", job.request);
  },

  // The answer of the first call may have been lost: the same request again is the same workspace.
  async retry() {
    const first = await call(workspaces, "CreateWorkspace", job.request);
    const again = await call(workspaces, "CreateWorkspace", job.request);
    const other = structuredClone(job.request);
    other.workspace.node_sets[0].count += 1;
    return { first: first.workspace, again: again.workspace, other: await refusal(workspaces, "CreateWorkspace", other) };
  },

  // Watches first, then creates, until the workspace runs; then it is the client who ends the stream.
  watch() {
    return new Promise((resolve, reject) => {
      const seen = [];
      const stream = workspaces.WatchWorkspaces({ parent: "tenants/-" });
      stream.on("data", (change) => {
        seen.push(change);
        const { name, state } = change.workspace ?? {};
        if (name?.endsWith(`/${job.request.workspace_id}`) && state === "STATE_RUNNING") stream.cancel();
      });
      stream.on("error", (error) =>
        error.code === grpc.status.CANCELLED ? resolve({ changes: seen }) : reject(error),
      );
      call(workspaces, "CreateWorkspace", job.request).catch(reject);
    });
  },
};

scenarios[job.scenario]().then(
  (result) => {
    process.stdout.write(JSON.stringify(result));
    workspaces.close();
    pools.close();
  },
  (error) => {
    process.stderr.write(`${error.stack}\n`);
    process.exitCode = 1;
  },
);
