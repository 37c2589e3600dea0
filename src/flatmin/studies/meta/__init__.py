"""Few-shot learning on real images: from settings to a tested model and a page.

`pools` draws tasks from the images of a set, `training` trains and resumes, `testing` measures on
fixed tasks and pairs methods over them, `page` writes what was found, and `recipes` does the cells
of a table. What a training is stands in `flatmin.studies.plan.fewshot`.
"""
