// The landing page: shows the addresses as they are from here, behind a proxy's prefix too.

for (const element of document.querySelectorAll("[data-url]")) {
  const path = element.dataset.url;
  const url = new URL(path, location.href).href;
  element.textContent = path === "ws" ? url.replace(/^http/, "ws") : url;
}
