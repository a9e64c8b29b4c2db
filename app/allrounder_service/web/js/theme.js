// Runs before the first paint, so that a chosen theme does not flash.
(() => {
  const root = document.documentElement;
  const preferred = matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  try { chosen = localStorage.getItem("theme"); } catch { /* storage may be switched off */ }
  const isDark = () => (chosen ?? (preferred.matches ? "dark" : "light")) === "dark";
  const show = () => {
    if (chosen) root.dataset.theme = chosen;
    document.getElementById("theme")?.setAttribute("aria-pressed", String(isDark()));
  };
  show();
  preferred.addEventListener("change", show);
  document.addEventListener("DOMContentLoaded", () => {
    show();
    document.getElementById("theme").addEventListener("click", () => {
      chosen = isDark() ? "light" : "dark";
      try { localStorage.setItem("theme", chosen); } catch { /* then it lasts until reload */ }
      show();
    });
  });
})();
