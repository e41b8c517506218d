import sys, numpy as np, cv2
from pipelines.config import load
from pipelines.demo.model_player import load_player
from pipelines.demo.player import Start
from msmodel.steering import Controls, Hand
p=load_player(load("nano",[],"", "/tmp/demoruns"))
pics={q.id:q for q in p.pictures()}
rows,cols=p.about.grid; A=np.array([1,p.about.height/p.about.width])
g=np.stack(np.meshgrid((np.arange(cols)+.5)/cols,(np.arange(rows)+.5)/rows),-1).reshape(-1,2).astype(np.float32)
def cream(f):
    r,gg,b=[f[...,i].astype(int) for i in range(3)]
    ys,xs=np.nonzero((r>140)&(r-b>15))
    return np.array([xs.mean()+.5,ys.mean()+.5])/[f.shape[1],f.shape[0]] if len(xs) else np.array([np.nan]*2)
def play(start,end,radius,before,same,move=12,after=4,seed=0,cover=None):
    perf=p.open(Start(pics['scene-heldout-00010-00-drag'].frame,pics['scene-heldout-00010-00-drag'].prompt,seed,Hand(0.0,0.0,"free")),record=False)
    mine=np.linalg.norm((g-start)*A,axis=-1)<=radius
    out=[];want=[]; prev=np.array(start)
    for k in range(before+move+after):
        s=min(1,max(0,(k+1-before)/move)); off=(np.array(end)-start)*s
        ids=np.arange(1,len(g)+1); xy=g.copy(); pin=np.ones(len(g),bool)
        if k>=before:
            xy[mine]+=off; pin[mine]=False
            if not same: ids[mine]+=1000
        pl=perf.next_chunk(Controls(k+1,ids,xy.astype(np.float32),pin)); perf.settle()
        now=np.array(start)+off; T=len(pl.frames)
        out.append(pl.frames); want+=[prev+(now-prev)*(t+1)/T for t in range(T)]; prev=now
    perf.close(); v=np.concatenate(out); w=np.array(want)
    c=np.array([cream(f) for f in v]); n0=sum(map(len,out[:before])) 
    e=np.linalg.norm((c-w)*A,axis=-1)[n0:]; st=np.linalg.norm((c[0]-w)*A,axis=-1)[n0:]
    return v,np.nanmean(e),np.nanmean(st),np.nanmean(e[-12:])
S=np.array([.5,.66]); E=np.array([.75,.45])
rowsv=[]
for rad in (.12,.16):
  for before in (0,3):
    for same in (True,False):
      for seed in (0,1):
        v,e,st,end=play(S,E,rad,before,same,seed=seed)
        print(f"radius {rad} before {before} same {same} seed {seed}: err {e:.3f} still {st:.3f} end {end:.3f}",flush=True)
        if seed==0: rowsv.append(np.hstack([cv2.resize(f,(160,100),interpolation=cv2.INTER_NEAREST) for f in v[::len(v)//9]][:9]))
cv2.imwrite('/tmp/drag2.png',np.vstack(rowsv)[...,::-1])
