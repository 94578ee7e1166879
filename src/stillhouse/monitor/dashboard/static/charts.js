// Draws what is in data-chart (monitor/dashboard/charts.py), in the page's own colours.
(function () {
  "use strict";
  var drawn = [];

  function colour(name) {
    return getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
  }

  function number(value, kind) {
    if (kind === "share") { return (100 * value).toFixed(1) + "%"; }
    if (kind === "usd") { return Number(value).toPrecision(4).replace(/\.?0+$/, "") + " USD"; }
    if (kind === "time") { return new Date(value).toISOString().slice(0, 16).replace("T", " "); }
    return Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(Number(value).toPrecision(4)));
  }

  function option(spec) {
    var time = spec.x.kind === "time";
    var quiet = colour("quiet"), ink = colour("ink"), line = colour("line"), paper = colour("card");
    function x(value) { return time ? value * 1000 : value; }
    var series = [];
    spec.series.forEach(function (one, place) {
      var own = colour(one.colour);
      if (one.band.length && !one.dots) {
        // A band is two stacked lines, the lower unseen.
        var quietly = { type: "line", stack: "band" + place, symbol: "none", silent: true,
          tooltip: { show: false }, lineStyle: { opacity: 0 }, stackStrategy: "all", emphasis: { disabled: true } };
        series.push(Object.assign({}, quietly, { name: one.name + " low", data: one.band.map(function (b) { return [x(b[0]), b[1]]; }) }));
        series.push(Object.assign({}, quietly, { name: one.name + " high", areaStyle: { color: own, opacity: 0.16 },
          data: one.band.map(function (b) { return [x(b[0]), b[2] - b[1]]; }) }));
      }
      if (one.band.length && one.dots) {
        one.band.forEach(function (b, k) {
          series.push({ type: "line", name: one.name + " interval " + k, symbol: "none", silent: true,
            tooltip: { show: false }, lineStyle: { color: own, width: 2 }, data: [[x(b[0]), b[1]], [x(b[0]), b[2]]] });
        });
      }
      series.push({
        type: one.dots ? "scatter" : "line", name: one.name, itemStyle: { color: own },
        symbol: "circle", symbolSize: one.dots ? 11 : one.points.length > 40 ? 0 : 5, showSymbol: true,
        lineStyle: { color: own, width: 2.2, type: one.dashed ? "dashed" : "solid" },
        data: one.points.map(function (p, k) { return { value: [x(p[0]), p[1]], name: one.labels[k] || one.name }; }),
        label: one.labels.length ? { show: true, position: "right", color: ink, formatter: "{b}" } : undefined,
        markLine: undefined
      });
    });
    if (series.length && spec.levels.length) {
      series[series.length - 1].markLine = {
        silent: true, symbol: "none",
        data: spec.levels.map(function (level) {
          return { yAxis: level.at, lineStyle: { color: colour(level.colour), type: "dashed", width: 1.5 },
            label: { formatter: level.name, position: "insideEndTop", color: ink } };
        })
      };
    }
    function axis(one, extra) {
      return Object.assign({
        name: one.name, nameTextStyle: { color: quiet },
        axisLabel: { color: quiet, hideOverlap: true, formatter: one.kind === "time" ? undefined : function (v) { return number(v, one.kind); } },
        axisLine: { lineStyle: { color: quiet } }, splitLine: { lineStyle: { color: line } }
      }, extra);
    }
    return {
      animation: false, useUTC: true, backgroundColor: "transparent", textStyle: { color: ink },
      aria: { enabled: false },
      grid: { left: 14, right: 22, top: 58, bottom: 34, containLabel: true },
      legend: { data: spec.series.map(function (s) { return s.name; }), top: 0, left: 0, type: "scroll",
        textStyle: { color: ink }, pageTextStyle: { color: ink }, icon: "circle" },
      // richText: drawn on the canvas; HTML would need inline styles, which the policy forbids.
      tooltip: { trigger: "item", renderMode: "richText", confine: true, backgroundColor: paper, textStyle: { color: ink },
        formatter: function (item) {
          var value = item.value;
          return item.name + "\n" + spec.x.name + ": " + number(value[0], spec.x.kind) + "\n" + spec.y.name + ": " + number(value[1], spec.y.kind);
        } },
      xAxis: axis(spec.x, { type: spec.x.kind, nameLocation: "middle", nameGap: 26, scale: true }),
      yAxis: axis(spec.y, { type: "value", nameLocation: "end", nameGap: 10, scale: spec.y.kind !== "usd" && spec.y.kind !== "count",
        nameTextStyle: { color: quiet, align: "left" } }),
      series: series
    };
  }

  function draw(place) {
    var spec = JSON.parse(place.dataset.chart);
    var chart = echarts.init(place, null, { renderer: "canvas" });
    chart.setOption(option(spec));
    drawn.push({ chart: chart, spec: spec });
  }

  document.addEventListener("DOMContentLoaded", function () {
    document.querySelectorAll("[data-chart]").forEach(draw);
    window.addEventListener("resize", function () {
      drawn.forEach(function (one) { one.chart.resize(); });
    });
    document.documentElement.dataset.charts = String(drawn.length);
  });
  document.addEventListener("stillhouse:theme", function () {
    drawn.forEach(function (one) { one.chart.setOption(option(one.spec), true); });
  });
})();
