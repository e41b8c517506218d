"""Training stages. What feeds what (each run takes a XRun config, an XInputs of records and a Context):

    stage      run config                      inputs                                      gives
    VAE        VAERun(vae, vae_training, h, w) VAEInputs(train, heldout) of Video          Checkpoint "vae"
    BASE       BaseRun(model, base)            ClipInputs(train, heldout)                  Checkpoint "base"
    TEACHER    TeacherRun(model, teacher)      TeacherInputs(train, heldout, base=None)    Checkpoint "teacher"
    ODE_PAIRS  OdeRun(model, ode, guidance)    OdeInputs(train, heldout, teacher)          OdePairs
    ADAPT      AdaptRun(model, adapt)          AdaptInputs(teacher, pairs)                 Checkpoint "adapted"
    DMD        DmdRun(model, dmd, guidance)    DmdInputs(train, heldout, teacher, adapted) Checkpoint "student"
    TINY_VAE   TinyVAERun(model, tiny_vae)     TinyVAEInputs(train, heldout)               Checkpoint "tiny_vae"

All are distributed jobs that work with any number of ranks; train and heldout are ShardSets (of VAE: videos). Each stage
lies in the
module of its lower-case name, with its config (BaseConfig, TeacherConfig...); Guidance lies in sampling.py. Without a base
checkpoint the teacher starts from teacher.init. The seed is the context's. A stage resumes by itself from ctx.workdir/saves and
leaves its weights in ctx.workdir/NAME (safetensors and config.json); after a non-finite loss the batch is in
ctx.workdir/alarms.

loop.py is the one training loop, method.py what a method tells it, state.py what is saved.
"""
