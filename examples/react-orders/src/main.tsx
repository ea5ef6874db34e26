import { EventBusProvider } from "@eventbus/react";
import { StrictMode, useEffect, useState } from "react";
import { createRoot } from "react-dom/client";
import { fetchPeople, fetchToken, signIn } from "./api";
import { Orders } from "./Orders";
import "./style.css";

const EDGE = import.meta.env.VITE_EDGE_URL ?? "/ws";

function App() {
  const [people, setPeople] = useState<Record<string, string>>({});
  const [person, setPerson] = useState(() => sessionStorage.getItem("person") ?? "1");
  useEffect(() => {
    fetchPeople().then(setPeople, console.error);
  }, []);
  const change = (id: string) => {
    sessionStorage.setItem("person", id);
    setPerson(id);
  };
  // A connection keeps its user: the key makes another provider, and so another connection.
  return (
    <EventBusProvider key={person} url={EDGE} token={() => fetchToken(person)}>
      <Orders people={people} person={person} onPerson={change} />
    </EventBusProvider>
  );
}

signIn(sessionStorage.getItem("person") ?? "1");
createRoot(document.getElementById("root")!).render(
  <StrictMode>
    <App />
  </StrictMode>,
);
