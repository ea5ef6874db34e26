import react from "@vitejs/plugin-react";
import { defineConfig } from "vite";

const service = "http://127.0.0.1:8000";
const edge = "http://127.0.0.1:8080";

// In development, the page, the service and the edge share one origin, as behind a reverse proxy.
export default defineConfig({
  plugins: [react()],
  server: { proxy: { "/api": service, "/ws": { target: edge, ws: true }, "/sse": edge } },
});
