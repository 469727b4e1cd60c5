"""What a push deploys: the file only narrows what was granted."""

from waybill.deploy.model import Grant, Host
from waybill.deploy.rules import Plan, Refusal, plan_push
from waybill.deploy.servicefile import Environment, RunSpec, ServiceFile


def file(branches=("main",), hosts=None, name="production"):
    run = RunSpec(driver="process", command=("./serve",), port=8080)
    environment = Environment(name=name, branches=branches, hosts=hosts or {"role": "web"}, run=run)
    return ServiceFile(path="waybill.yml", service="hello", environments={name: environment})


def a_host(name, **labels):
    return Host(name=name, labels=labels, recipient="", fingerprint="")


GRANT = Grant(
    id="g", repository="team/hello", service="hello", environment="production", branches=("main", "release/*"),
    hosts={"role": "web"},
)  # fmt: skip
HOSTS = [a_host("web1", role="web"), a_host("web2", role="web"), a_host("db1", role="db")]


def plan(service_file, branch="main", grants=(GRANT,), repository="team/hello", hosts=HOSTS):
    return plan_push([service_file], branch, repository, list(grants), list(hosts))


def test_the_branch_and_hosts_of_file_and_grant_agree():
    [planned] = plan(file())
    assert isinstance(planned, Plan)
    assert planned.hosts == ("web1", "web2")
    assert "no health check" in planned.warnings[0]


def test_a_branch_that_matches_no_environment_deploys_nothing_and_is_no_fault():
    assert plan(file(), branch="feature/x") == []


def test_a_branch_that_writes_itself_into_the_file_is_refused_with_the_reason():
    [refusal] = plan(file(branches=("main", "evil")), branch="evil")
    assert isinstance(refusal, Refusal)
    assert "the grant does not" in refusal.reason
    assert "main, release/*" in refusal.reason


def test_a_file_that_asks_for_other_hosts_is_refused_by_name():
    [refusal] = plan(file(hosts={"role": "db"}))
    assert isinstance(refusal, Refusal)
    assert "db1" in refusal.reason
    assert "role=web" in refusal.hint


def test_another_repository_cannot_deploy_what_it_was_not_granted():
    [refusal] = plan(file(), repository="other/fork")
    assert isinstance(refusal, Refusal)
    assert "granted to team/hello" in refusal.reason


def test_no_grant_says_how_to_get_one():
    [refusal] = plan(file(), grants=())
    assert isinstance(refusal, Refusal)
    assert "waybill grant hello/production" in refusal.hint


def test_no_host_with_the_labels_is_a_refusal_not_a_silent_nothing():
    [refusal] = plan(file(hosts={"role": "gpu"}))
    assert isinstance(refusal, Refusal)
    assert "role=gpu" in refusal.reason
