"""Few-shot learning on real images: from settings to a tested model and a page.

`pools` draws tasks from the images of a set, `training` trains and resumes, `testing` measures on
fixed tasks and pairs methods over them, and `page` writes what was found. Of a table, `recipes`
says which cells there are, `running` does them, and `section` reports them. What a training is
stands in `flatmin.studies.plan.fewshot`.
"""
