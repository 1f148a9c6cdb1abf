// A real Better Auth on a port of its own, its tables in the database that it is given. It ends with its input.
import { createServer } from "node:http";
import { betterAuth } from "better-auth";
import { getMigrations } from "better-auth/db/migration";
import { toNodeHandler } from "better-auth/node";
import { jwt } from "better-auth/plugins";
import pg from "pg";

const { database, secret, algorithm } = JSON.parse(process.argv[2]);
process.stdin.resume().on("end", () => process.exit());

const server = createServer();
server.listen(0, "127.0.0.1", async () => {
  const baseURL = `http://127.0.0.1:${server.address().port}`;
  const auth = betterAuth({
    baseURL,
    secret,
    database: new pg.Pool({ connectionString: database }),
    emailAndPassword: { enabled: true },
    session: { cookieCache: { enabled: true, strategy: "jwt" } },
    plugins: [jwt({ jwks: { keyPairConfig: { alg: algorithm } } })],
    telemetry: { enabled: false },
    rateLimit: { enabled: false },
  });
  const { runMigrations } = await getMigrations(auth.options);
  await runMigrations();
  server.on("request", toNodeHandler(auth));
  console.log(baseURL);
});
