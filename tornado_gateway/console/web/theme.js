// Light, dark, or the system's setting. Loaded before the page is painted, so it is no module.
(() => {
  const MODES = ["auto", "light", "dark"];
  const WORDS = { auto: "as the system", light: "light", dark: "dark" };

  const read = () => {
    try {
      const mode = localStorage.getItem("theme");
      return MODES.includes(mode) ? mode : "auto";
    } catch {
      return "auto";
    }
  };

  const apply = (mode) => {
    document.documentElement.dataset.theme = mode;
    for (const button of document.querySelectorAll("[data-theme-button]")) {
      button.setAttribute("aria-label", `Colours: ${WORDS[mode]}`);
      button.title = `Colours: ${WORDS[mode]}`;
    }
  };

  const next = () => {
    const mode = MODES[(MODES.indexOf(read()) + 1) % MODES.length];
    try {
      localStorage.setItem("theme", mode);
    } catch {
      // The choice then lasts as long as the page.
    }
    apply(mode);
  };

  apply(read());
  addEventListener("DOMContentLoaded", () => {
    apply(read());
    for (const button of document.querySelectorAll("[data-theme-button]")) button.addEventListener("click", next);
  });
})();
