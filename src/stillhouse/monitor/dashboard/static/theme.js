// Light or dark: the system's, until the button says otherwise. Loaded before the page is drawn.
(function () {
  "use strict";
  var root = document.documentElement;
  var kept = null;
  try { kept = localStorage.getItem("stillhouse-theme"); } catch (_) { /* storage is off */ }
  if (kept === "light" || kept === "dark") { root.dataset.theme = kept; }
  function dark() {
    if (root.dataset.theme) { return root.dataset.theme === "dark"; }
    return matchMedia("(prefers-color-scheme: dark)").matches;
  }
  function told() { document.dispatchEvent(new CustomEvent("stillhouse:theme")); }
  document.addEventListener("DOMContentLoaded", function () {
    var button = document.getElementById("theme");
    if (!button) { return; }
    function label() { button.textContent = dark() ? "Light" : "Dark"; }
    button.hidden = false;
    label();
    button.addEventListener("click", function () {
      root.dataset.theme = dark() ? "light" : "dark";
      try { localStorage.setItem("stillhouse-theme", root.dataset.theme); } catch (_) { /* as above */ }
      label();
      told();
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", function () { label(); told(); });
  });
})();
