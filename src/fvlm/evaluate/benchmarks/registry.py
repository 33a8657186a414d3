"""All benchmarks by name. `schema.Benchmark` lists the same names, since a study may name no other."""

from fvlm.evaluate.benchmarks import captions, demo, mlvu, mvbench, pope, scienceqa, video_mme

BENCHMARKS = {
    "video_mme": video_mme.BENCHMARK,
    "video_mme_subtitles": video_mme.WITH_SUBTITLES,
    "mvbench": mvbench.BENCHMARK,
    "mlvu": mlvu.BENCHMARK,
    "pope": pope.BENCHMARK,
    "scienceqa": scienceqa.BENCHMARK,
    "captions": captions.BENCHMARK,
    "demo": demo.BENCHMARK,
}
