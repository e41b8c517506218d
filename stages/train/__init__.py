"""Training stages, with their run configs, inputs and results.

Each stage's run takes a run config, a dataclass of input records and a Context:

    stage      run config                      inputs                                      result
    VAE        VAERun(vae, vae_training, h, w) VAEInputs(train, heldout) of Video          Checkpoint "vae"
    BASE       BaseRun(model, base)            ClipInputs(train, heldout)                  Checkpoint "base"
    TEACHER    TeacherRun(model, teacher)      TeacherInputs(train, heldout, base=None)    Checkpoint "teacher"
    ODE_PAIRS  OdeRun(model, ode, guidance)    OdeInputs(train, heldout, teacher)          OdePairs
    ADAPT      AdaptRun(model, adapt)          AdaptInputs(teacher, pairs)                 Checkpoint "adapted"
    DMD        DmdRun(model, dmd, guidance)    DmdInputs(train, heldout, teacher, adapted) Checkpoint "student"
    TINY_VAE   TinyVAERun(model, tiny_vae)     TinyVAEInputs(train, heldout)               Checkpoint "tiny_vae"

All stages are distributed and work with any number of ranks. train and heldout are ShardSets (of stage VAE: videos).
Each stage is in the module of its lower-case name, together with its config (BaseConfig, TeacherConfig...). Guidance is
in sampling.py. Without a base checkpoint the teacher starts from teacher.init. The random seed is that of the context.
A training resumes automatically from ctx.workdir/saves and writes its weights to ctx.workdir/NAME (safetensors and
config.json). After a non-finite loss the batch is in ctx.workdir/alarms.

loop.py is the training loop. method.py defines the interface of a training method. state.py saves and restores training
states.
"""
